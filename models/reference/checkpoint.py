"""Write a small random checkpoint as a Hugging Face directory in the layout of Qwen-VL-Chat."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tensorfile
import vocabulary
from tokenizer import SPECIALS

GRID = 256  # rows of the vision positional embedding: the published code fixes a 16 x 16 grid


@dataclass(frozen=True)
class Dims:
    """Everything that shapes a checkpoint. `n_ff` is the size of each half: config.json says twice that."""

    seed: int
    n_ranks: int
    n_rows: int
    hidden: int
    heads: int
    layers: int
    n_ff: int
    seq_length: int
    vision_width: int
    vision_heads: int
    vision_layers: int
    image_size: int
    n_queries: int
    mlp_ratio: float = 4.9231
    patch_size: int = 14


def sincos_2d(d: int, side: int) -> np.ndarray:
    """(side*side, d): the first half of the channels encodes x, the second y; each half is sines, then cosines."""
    omega = 10000.0 ** (-np.arange(d // 4) / (d / 4))
    wave = lambda p: np.concatenate([np.sin(np.outer(p, omega)), np.cos(np.outer(p, omega))], 1)
    y, x = np.divmod(np.arange(side * side), side)
    return np.concatenate([wave(x), wave(y)], 1).astype(np.float32)


class Random:
    """Seeded weights: matrices keep the variance of their input times gain**2, norms are near one, biases small."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.w: tensorfile.Arrays = {}

    def normal(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> None:
        self.w[name] = (mean + std * self.rng.standard_normal(shape)).astype(np.float32)

    def linear(self, name: str, n_out: int, n_in: int, gain: float = 1.0, bias: bool = True, sep: str = ".") -> None:
        self.normal(f"{name}{sep}weight", (n_out, n_in), gain / math.sqrt(n_in))
        if bias:
            self.normal(f"{name}{sep}bias", (n_out,), 0.2)

    def norm(self, name: str, n: int, bias: bool) -> None:
        self.normal(name + ".weight", (n,), 0.2, 1.0)
        if bias:
            self.normal(name + ".bias", (n,), 0.2)


def vision_weights(r: Random, d: Dims) -> None:
    v, width, out = "transformer.visual", d.vision_width, d.hidden
    fan_in = 3 * d.patch_size**2
    r.normal(f"{v}.conv1.weight", (width, 3, d.patch_size, d.patch_size), 1.2 / math.sqrt(fan_in))
    r.normal(f"{v}.positional_embedding", (GRID, width), 0.5)
    r.norm(f"{v}.ln_pre", width, bias=True)
    up = int(width * d.mlp_ratio)
    for il in range(d.vision_layers):
        b = f"{v}.transformer.resblocks.{il}"
        r.norm(f"{b}.ln_1", width, bias=True)
        r.linear(f"{b}.attn.in_proj", 3 * width, width, gain=1.2)
        r.linear(f"{b}.attn.out_proj", width, width)
        r.norm(f"{b}.ln_2", width, bias=True)
        r.linear(f"{b}.mlp.c_fc", up, width)
        r.linear(f"{b}.mlp.c_proj", width, up)
    p = f"{v}.attn_pool"
    r.w[f"{p}.pos_embed"] = sincos_2d(out, math.isqrt(d.n_queries))
    r.normal(f"{p}.query", (d.n_queries, out), 1.0)
    if width != out:
        r.linear(f"{p}.kv_proj", out, width, bias=False)
    r.norm(f"{p}.ln_q", out, bias=True)
    r.norm(f"{p}.ln_kv", out, bias=True)
    r.linear(f"{p}.attn.in_proj", 3 * out, out, gain=1.2, sep="_")
    r.linear(f"{p}.attn.out_proj", out, out)
    r.norm(f"{v}.ln_post", out, bias=True)
    r.normal(f"{v}.proj", (out, out), 1 / math.sqrt(out))


def text_weights(r: Random, d: Dims) -> None:
    r.normal("transformer.wte.weight", (d.n_rows, d.hidden), 1.0)
    for il in range(d.layers):
        h = f"transformer.h.{il}"
        r.norm(f"{h}.ln_1", d.hidden, bias=False)
        r.linear(f"{h}.attn.c_attn", 3 * d.hidden, d.hidden, gain=1.2)
        r.linear(f"{h}.attn.c_proj", d.hidden, d.hidden, bias=False)
        r.norm(f"{h}.ln_2", d.hidden, bias=False)
        r.linear(f"{h}.mlp.w1", d.n_ff, d.hidden, bias=False)
        r.linear(f"{h}.mlp.w2", d.n_ff, d.hidden, bias=False)
        r.linear(f"{h}.mlp.c_proj", d.hidden, d.n_ff, bias=False)
    r.norm("transformer.ln_f", d.hidden, bias=False)
    r.linear("lm_head", d.n_rows, d.hidden, gain=2.6, bias=False)
    # Special tokens get small logits, so that greedy decoding of a random model seldom meets one. The padding rows
    # behind them keep their size: a runtime that forgets to mask them will choose one.
    r.w["lm_head.weight"][d.n_ranks : d.n_ranks + len(SPECIALS)] *= 0.3


def config(d: Dims) -> dict:
    return {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "attn_dropout_prob": 0.0,
        "bf16": False,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": d.hidden,
        "initializer_range": 0.02,
        "intermediate_size": 2 * d.n_ff,
        "kv_channels": d.hidden // d.heads,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 8192,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": d.heads,
        "num_hidden_layers": d.layers,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": d.seq_length,
        "tie_word_embeddings": False,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "use_dynamic_ntk": True,
        "use_flash_attn": False,
        "use_logn_attn": True,
        "visual": {
            "heads": d.vision_heads,
            "image_size": d.image_size,
            "image_start_id": d.n_ranks + SPECIALS.index("<img>"),
            "layers": d.vision_layers,
            "mlp_ratio": d.mlp_ratio,
            "n_queries": d.n_queries,
            "output_dim": d.hidden,
            "patch_size": d.patch_size,
            "width": d.vision_width,
        },
        "vocab_size": d.n_rows,
    }


def generation_config(d: Dims) -> dict:
    return {
        "chat_format": "chatml",
        "do_sample": True,
        "eos_token_id": d.n_ranks,
        "max_new_tokens": 512,
        "max_window_size": 6144,
        "pad_token_id": d.n_ranks,
        "top_k": 0,
        "top_p": 0.3,
        "transformers_version": "4.31.0",
    }


def write_settings(out: Path, d: Dims) -> None:
    """The three JSON files of a directory."""
    tokenizer_config = {
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
        "model_max_length": 8192,
        "tokenizer_class": "QWenTokenizer",
    }
    objects = {"config": config(d), "generation_config": generation_config(d), "tokenizer_config": tokenizer_config}
    for name, value in objects.items():
        (out / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")


def write(out: Path, d: Dims) -> None:
    """The whole directory; the same Dims give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    r = Random(d.seed)
    vision_weights(r, d)
    text_weights(r, d)
    tensorfile.write(out / "model.safetensors", r.w, floats="BF16", metadata={"format": "pt"})
    vocabulary.write(out / "qwen.tiktoken", d.n_ranks)
    write_settings(out, d)
