"""Qwen-VL (2023) in plain PyTorch, float32, any dimensions: the reference that the Rust runtime is compared with.

Written from the project's specification of the published checkpoints. Clarity before speed: one picture and one
sequence at a time. Every function that takes `trace` stores intermediate values in it under the names of `qvl trace`
(and a few more).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import tensorfile

Trace = dict[str, Tensor]
VISION_EPS = 1e-6
ADAPTER_HEAD_DIM = 128


@dataclass(frozen=True)
class VisionConfig:
    """The `visual` object of config.json."""

    heads: int
    image_size: int
    image_start_id: int
    layers: int
    mlp_ratio: float
    output_dim: int
    patch_size: int
    width: int
    n_queries: int = 256


@dataclass(frozen=True)
class Config:
    """What the model reads of config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_channels: int
    layer_norm_epsilon: float
    rotary_emb_base: float
    seq_length: int
    use_dynamic_ntk: bool
    use_logn_attn: bool
    vocab_size: int
    visual: VisionConfig | None

    @staticmethod
    def read(model_dir: Path) -> "Config":
        raw = json.loads((Path(model_dir) / "config.json").read_text())
        visual = raw.get("visual")
        pick = lambda cls, src: {k: src[k] for k in cls.__dataclass_fields__ if k in src and k != "visual"}
        return Config(**pick(Config, raw), visual=VisionConfig(**pick(VisionConfig, visual)) if visual else None)


def load_weights(model_dir: Path) -> dict[str, Tensor]:
    """Every *.safetensors shard of a HF directory, upcast to float32."""
    shards = sorted(Path(model_dir).glob("*.safetensors"))
    if not shards:
        raise FileNotFoundError(f"no *.safetensors in {model_dir}")
    return {name: torch.from_numpy(x) for shard in shards for name, x in tensorfile.read(shard).items()}


def resize_positions(table: Tensor, n_target: int) -> Tensor:
    """(g*g, c) -> (n_target, c): torch bicubic (a = -0.75), no antialiasing, edges clamped; itself when sizes agree."""
    n, c = table.shape
    src, dst = math.isqrt(n), math.isqrt(n_target)
    if src == dst:
        return table
    grid = table.reshape(1, src, src, c).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(dst, dst), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(dst * dst, c)


class Vision:
    """Picture (3, s, s) -> embedding (n_queries, hidden)."""

    def __init__(self, config: VisionConfig, weights: dict[str, Tensor]):
        self.config = config
        self.w = {k.removeprefix("transformer.visual."): v for k, v in weights.items() if ".visual." in k}

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[name + ".weight"], self.w[name + ".bias"], VISION_EPS)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def attention(self, x: Tensor, name: str) -> Tensor:
        """Self-attention; the rows of in_proj are interleaved per head: [head][q | k | v]."""
        n, width = x.shape
        heads = self.config.heads
        d = width // heads
        q, k, v = self.linear(x, name + ".in_proj").view(n, heads, 3 * d).transpose(0, 1).split(d, dim=-1)
        probs = torch.softmax((q / math.sqrt(d)) @ k.transpose(1, 2), dim=-1)
        return self.linear((probs @ v).transpose(0, 1).reshape(n, width), name + ".out_proj")

    def block(self, x: Tensor, il: int, trace: Trace) -> Tensor:
        name = f"transformer.resblocks.{il}"
        normed = self.norm(x, name + ".ln_1")
        attn = self.attention(normed, name + ".attn")
        x = x + attn
        up = self.linear(self.norm(x, name + ".ln_2"), name + ".mlp.c_fc")
        mlp = self.linear(F.gelu(up), name + ".mlp.c_proj")
        x = x + mlp
        trace.update({f"block.{il}.ln_1": normed, f"block.{il}.attn": attn, f"block.{il}.mlp.c_fc": up})
        trace.update({f"block.{il}.mlp": mlp, f"block.{il}": x})
        return x

    def resampler(self, x: Tensor, trace: Trace) -> Tensor:
        """One cross-attention from the learned queries to the patches."""
        w, c = self.w, self.config
        if "attn_pool.kv_proj.weight" in w:
            x = x @ w["attn_pool.kv_proj.weight"].T
        kv = self.norm(x, "attn_pool.ln_kv")
        query = self.norm(w["attn_pool.query"], "attn_pool.ln_q")
        pos = w["attn_pool.pos_embed"]
        key_pos = resize_positions(pos, kv.shape[0])
        wq, wk, wv = w["attn_pool.attn.in_proj_weight"].chunk(3)
        bq, bk, bv = w["attn_pool.attn.in_proj_bias"].chunk(3)
        heads = c.output_dim // ADAPTER_HEAD_DIM
        split = lambda t: t.view(t.shape[0], heads, -1).transpose(0, 1)
        q = split(F.linear(query + pos, wq, bq))
        k = split(F.linear(kv + key_pos, wk, bk))
        v = split(F.linear(kv, wv, bv))
        probs = torch.softmax((q / math.sqrt(q.shape[-1])) @ k.transpose(1, 2), dim=-1)
        out = self.linear((probs @ v).transpose(0, 1).reshape(query.shape), "attn_pool.attn.out_proj")
        trace.update({"ln_kv": kv, "ln_q": query, "key_pos_embed": key_pos, "resampler": out})
        return out

    def encode(self, pixels: Tensor, trace: Trace | None = None) -> Tensor:
        """(3, s, s) normalised pixels -> (n_queries, hidden)."""
        trace = {} if trace is None else trace
        w, c = self.w, self.config
        x = F.conv2d(pixels[None], w["conv1.weight"], stride=c.patch_size)[0].flatten(1).T
        pos = resize_positions(w["positional_embedding"], x.shape[0])
        trace.update({"pixel_values": pixels, "conv1": x, "pos_embed_interpolated": pos})
        x = trace["ln_pre"] = self.norm(x + pos, "ln_pre")
        for il in range(c.layers):
            x = self.block(x, il, trace)
        x = trace["ln_post"] = self.norm(self.resampler(x, trace), "ln_post")
        x = trace["embedding"] = x @ w["proj"]
        return x


def ntk_alpha(n_prefill: int, seq_length: int) -> float:
    """Dynamic NTK factor of a prefill of `n_prefill` positions: 1, 3, 7, 15, .."""
    return max(2.0 ** math.ceil(math.log(n_prefill / seq_length, 2) + 1) - 1, 1.0)


class Cache:
    """Keys (after rotary) and values of each layer, [heads, n, d_head], and the alpha of the prefill."""

    def __init__(self, n_layer: int):
        self.k: list[Tensor | None] = [None] * n_layer
        self.v: list[Tensor | None] = [None] * n_layer
        self.alpha = 1.0

    def __len__(self) -> int:
        return 0 if self.k[0] is None else self.k[0].shape[1]

    def append(self, il: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.k[il] is not None:
            k, v = torch.cat([self.k[il], k], 1), torch.cat([self.v[il], v], 1)
        self.k[il], self.v[il] = k, v
        return k, v


class Text:
    """The language model: embeddings in, logits out."""

    def __init__(self, config: Config, weights: dict[str, Tensor]):
        self.config = config
        self.w = {k.removeprefix("transformer."): v for k, v in weights.items() if ".visual." not in k}

    def norm(self, x: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.layer_norm_epsilon)
        return x * scale * self.w[name + ".weight"]

    def rotary(self, alpha: float, lo: int, hi: int) -> tuple[Tensor, Tensor]:
        """cos and sin, [hi - lo, d_head], of the positions lo..hi."""
        d = self.config.kv_channels
        base = self.config.rotary_emb_base * alpha ** (d / (d - 2))
        inv_freq = 1.0 / (base ** (torch.arange(0, d, 2).float() / d))
        angle = torch.outer(torch.arange(lo, hi).float(), inv_freq)
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()

    def logn(self, lo: int, hi: int) -> Tensor:
        """The factor of the query at each position of lo..hi."""
        s = self.config.seq_length
        return torch.tensor([math.log(p + 1, s) if p + 1 > s else 1.0 for p in range(lo, hi)])

    def attention(self, x: Tensor, il: int, cache: Cache, trace: Trace) -> Tensor:
        c, name = self.config, f"h.{il}.attn"
        n, past = x.shape[0], len(cache) if il == 0 else cache.k[0].shape[1] - x.shape[0]
        qkv = F.linear(x, self.w[name + ".c_attn.weight"], self.w[name + ".c_attn.bias"])
        trace[f"layer.{il}.c_attn"] = qkv
        q, k, v = (t.view(n, c.num_attention_heads, c.kv_channels).transpose(0, 1) for t in qkv.chunk(3, -1))
        cos, sin = self.rotary(cache.alpha, past, past + n)
        half = c.kv_channels // 2
        rotate = lambda t: t * cos + torch.cat([-t[..., half:], t[..., :half]], -1) * sin
        q, k = rotate(q), rotate(k)
        if c.use_logn_attn:
            q = q * self.logn(past, past + n)[:, None]
        k, v = cache.append(il, k, v)
        scores = q @ k.transpose(1, 2) / math.sqrt(c.kv_channels)
        future = torch.ones(n, past + n, dtype=torch.bool).triu(past + 1)
        probs = torch.softmax(scores.masked_fill(future, -math.inf), -1)
        return F.linear((probs @ v).transpose(0, 1).reshape(n, -1), self.w[name + ".c_proj.weight"])

    def mlp(self, x: Tensor, il: int) -> Tensor:
        w, name = self.w, f"h.{il}.mlp"
        up, gate = F.linear(x, w[name + ".w1.weight"]), F.linear(x, w[name + ".w2.weight"])
        return F.linear(up * F.silu(gate), w[name + ".c_proj.weight"])

    def forward(self, embeds: Tensor, cache: Cache, trace: Trace | None = None) -> Tensor:
        """(n, hidden) -> logits (n, vocabulary); extends `cache`. An empty cache makes it the prefill that sets alpha."""
        trace = {} if trace is None else trace
        c, x = self.config, embeds
        trace["embeds"] = x
        if len(cache) == 0:
            cache.alpha = ntk_alpha(x.shape[0], c.seq_length) if c.use_dynamic_ntk else 1.0
        for il in range(c.num_hidden_layers):
            attn = trace[f"layer.{il}.attn"] = self.attention(self.norm(x, f"h.{il}.ln_1"), il, cache, trace)
            x = x + attn
            mlp = trace[f"layer.{il}.mlp"] = self.mlp(self.norm(x, f"h.{il}.ln_2"), il)
            x = trace[f"layer.{il}"] = x + mlp
        x = trace["ln_f"] = self.norm(x, "ln_f")
        logits = trace["logits"] = F.linear(x, self.w["lm_head.weight"])
        return logits


class QwenVL:
    """Vision and text together, for one sequence."""

    def __init__(self, model_dir: Path):
        self.config = Config.read(model_dir)
        weights = load_weights(model_dir)
        self.text = Text(self.config, weights)
        self.vision = Vision(self.config.visual, weights) if self.config.visual else None

    def embed(self, ids: list[int], embeddings: list[Tensor]) -> Tensor:
        """Token embeddings; the rows strictly between the k-th image start and end are those of picture k."""
        x = self.text.w["wte.weight"][torch.tensor(ids)].clone()
        if self.vision is None:
            return x
        starts = [p for p, t in enumerate(ids) if t == self.config.visual.image_start_id]
        if len(starts) != len(embeddings):
            raise ValueError(f"{len(starts)} image spans, {len(embeddings)} pictures")
        for p, e in zip(starts, embeddings):
            x[p + 1 : p + 1 + len(e)] = e
        return x

    @torch.no_grad()
    def run(
        self,
        ids: list[int],
        pictures: list[Tensor] = (),
        n_predict: int = 0,
        n_used: int | None = None,
        stop: tuple[int, ...] = (),
        trace: Trace | None = None,
    ) -> tuple[Tensor, list[int], Tensor]:
        """Prefill `ids` with `pictures` (pixel values each), then decode greedily with the KV cache.

        `n_used`: ids from here on are vocabulary padding and never chosen (None: chosen like any other, as the
        published code does). Returns the prompt's logits (n, vocab), the ids and the logits row each was chosen from.
        """
        trace = {} if trace is None else trace
        embeddings = []
        for k, pixels in enumerate(pictures):
            part: Trace = {}
            embeddings.append(self.vision.encode(pixels, part))
            trace.update({f"image.{k}.{name}": t for name, t in part.items()})
        cache = Cache(self.config.num_hidden_layers)
        logits = self.text.forward(self.embed(ids, embeddings), cache, trace)
        trace.update({"cache.k.0": cache.k[0].transpose(0, 1), "cache.v.0": cache.v[0].transpose(0, 1)})
        row, out, rows = logits[-1], [], []
        for step in range(n_predict):
            rows.append(row)
            out.append(int(row[:n_used].argmax()))
            if out[-1] in stop or step + 1 == n_predict:
                break
            row = self.text.forward(self.text.w["wte.weight"][out[-1:]], cache)[-1]
        return logits, out, torch.stack(rows) if rows else logits[:0]
