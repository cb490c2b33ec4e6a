"""A small model with the real head dim (128) and seq_length (2048), and its logits at long positions:
long_positions.py OUT_DIR

Writes OUT_DIR/hf and, per prompt length, OUT_DIR/logits-N.safetensors (`input_ids`, `logits` of every position) and
OUT_DIR/ids-N.json (for `qvl trace --ids`). Not committed: it measures how far a runtime's rotary angles drift.
Prints what to expect of a runtime that computes angles by repeated multiplication, as ggml's CPU code does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

import checkpoint
import tensorfile
from qwen_vl import QwenVL

DIMS = checkpoint.Dims(
    seed=2048,
    n_ranks=1100,
    n_rows=1408,
    hidden=512,
    heads=4,
    layers=2,
    n_ff=1024,
    seq_length=2048,
    vision_width=64,
    vision_heads=2,
    vision_layers=1,
    image_size=112,
    n_queries=16,
)
LENGTHS = [2000, 2300]  # alpha 1 without logn; alpha 3 with logn from position 2048


def iterated_rotary(self, alpha: float, lo: int, hi: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin with theta_{i+1} = theta_i * base**(-2/d) in float32, rounded at every step."""
    d = self.config.kv_channels
    base = np.float32(self.config.rotary_emb_base * alpha ** (d / (d - 2)))
    step = np.power(base, np.float32(-2.0 / d), dtype=np.float32)
    theta = np.arange(lo, hi).astype(np.float32)
    columns = []
    for _ in range(d // 2):
        columns.append(theta)
        theta = theta * step
    angle = torch.from_numpy(np.stack(columns * 2, -1))
    return angle.cos(), angle.sin()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).double().norm() / b.double().norm())


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    checkpoint.write(out / "hf", DIMS)
    model = QwenVL(out / "hf")
    exact = type(model.text).rotary
    for n in LENGTHS:
        ids = np.random.default_rng(n).integers(0, DIMS.n_ranks, n).astype(np.int32)
        logits, _, _ = model.run(ids.tolist())
        tensorfile.write(out / f"logits-{n}.safetensors", {"input_ids": ids, "logits": logits.numpy()})
        (out / f"ids-{n}.json").write_text(json.dumps(ids.tolist()))
        type(model.text).rotary = iterated_rotary
        drifted, _, _ = model.run(ids.tolist())
        type(model.text).rotary = exact
        tail = slice(-100, None)
        print(
            f"{n} positions: logits std {logits.std():.2f}; iterated angles: relative L2 {relative(drifted, logits):.1e} "
            f"over all, {relative(drifted[tail], logits[tail]):.1e} over the last 100"
        )


if __name__ == "__main__":
    main()
