#!/usr/bin/env python3
"""Time of one picture through the vision tower of the real shape in PyTorch, to hold `encode_ms` of qvl against.

    python3 -m venv venv && venv/bin/pip install torch numpy
    venv/bin/python benches/torch-tower.py [--dtype bfloat16] [--threads 2] [--runs 3]

Random weights (the time does not depend on them; 3.9 GB in bfloat16). The computation is that of models/reference, with PyTorch's
fused attention. On a CPU with AMX, PyTorch uses it for bfloat16; ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 shows it without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "models" / "reference"))

from qwen_vl import Config, Vision, VisionConfig  # noqa: E402


class FastVision(Vision):
    """The reference's tower without its traces, attention fused."""

    def attention(self, x: torch.Tensor, name: str) -> torch.Tensor:
        n, width = x.shape
        heads = self.config.heads
        q, k, v = self.linear(x, name + ".in_proj").view(n, heads, 3 * (width // heads)).transpose(0, 1).chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        return self.linear(out.transpose(0, 1).reshape(n, width), name + ".out_proj")

    def block(self, x: torch.Tensor, il: int, trace: dict) -> torch.Tensor:
        name = f"transformer.resblocks.{il}"
        x = x + self.attention(self.norm(x, name + ".ln_1"), name + ".attn")
        return x + self.linear(F.gelu(self.linear(self.norm(x, name + ".ln_2"), name + ".mlp.c_fc")), name + ".mlp.c_proj")


def random_weights(c: VisionConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors of the tower, of a size that keeps activations in order."""
    prefix, width, out, mlp = "transformer.visual.", c.width, c.output_dim, int(c.width * c.mlp_ratio)
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, 3, c.patch_size, c.patch_size),
        "positional_embedding": (256, width),
        "attn_pool.pos_embed": (c.n_queries, out),
        "attn_pool.query": (c.n_queries, out),
        "attn_pool.kv_proj.weight": (out, width),
        "attn_pool.attn.in_proj_weight": (3 * out, out),
        "attn_pool.attn.in_proj_bias": (3 * out,),
        "attn_pool.attn.out_proj.weight": (out, out),
        "attn_pool.attn.out_proj.bias": (out,),
        "proj": (out, out),
    }
    norms = {"ln_pre": width, "attn_pool.ln_q": out, "attn_pool.ln_kv": out, "ln_post": out}
    for il in range(c.layers):
        b = f"transformer.resblocks.{il}."
        norms |= {b + "ln_1": width, b + "ln_2": width}
        for name, (m, k) in {
            "attn.in_proj": (3 * width, width),
            "attn.out_proj": (width, width),
            "mlp.c_fc": (mlp, width),
            "mlp.c_proj": (width, mlp),
        }.items():
            shapes |= {f"{b}{name}.weight": (m, k), f"{b}{name}.bias": (m,)}
    weights = {}
    for name, shape in shapes.items():
        fan_in = shape[-1] if len(shape) == 2 else 1000
        weights[prefix + name] = torch.empty(shape, dtype=dtype).normal_(0.0, fan_in**-0.5)
    for name, n in norms.items():
        weights |= {f"{prefix}{name}.weight": torch.ones(n, dtype=dtype), f"{prefix}{name}.bias": torch.zeros(n, dtype=dtype)}
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "models" / "qwen-vl-chat", help="folder of a config.json")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = Config.read(args.config).visual
    assert config is not None, f"{args.config} has no vision tower"
    dtype = getattr(torch, args.dtype)
    model = FastVision(config, random_weights(config, dtype))
    pixels = torch.randn(3, config.image_size, config.image_size, dtype=dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(args.runs + 1):
            start = time.perf_counter()
            result = model.encode(pixels)
            seconds.append(time.perf_counter() - start)
    assert result.isfinite().all()
    median = statistics.median(seconds[1:])
    # The first run packs weights and is not counted.
    print(json.dumps({"torch": torch.__version__, "dtype": args.dtype, "threads": args.threads,
                      "encode_ms": round(1e3 * median), "runs_ms": [round(1e3 * s) for s in seconds[1:]]}))


if __name__ == "__main__":
    main()
