"""Write a trained model as a Hugging Face directory: export.py RUN_DIR/stage3.pt OUT_DIR [CHECKPOINT_DIR..].

Weights are the mean of the trained ones and those of the checkpoints: a training that went on from one of them ends near it, each with
errors of its own, and the mean of two is better than both. Then compares the reference implementation, which reads that directory, with
the model as written.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch

import data
from model import Dims, QwenVL

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reference"))
import checkpoint  # noqa: E402
import qwen_vl  # noqa: E402
import tensorfile  # noqa: E402

SEQ_LENGTH = 2048
TOLERANCE = 1e-5  # relative L2 of float32 logits: the two sum in different orders


# Significant bits of a weight. Fewer than bf16 has (8), which costs nothing that the held-out set shows, and a quarter of
# what version control has to keep.
SIGNIFICANT_BITS = 5


def shortened(w: np.ndarray) -> np.ndarray:
    """Weights rounded to bf16 and then to so many bits."""
    bits = torch.from_numpy(w).bfloat16().float().numpy()
    mantissa, exponent = np.frexp(bits)
    return np.ldexp(np.rint(mantissa * 2**SIGNIFICANT_BITS) / 2**SIGNIFICANT_BITS, exponent).astype(np.float32)


def settings(d: Dims) -> checkpoint.Dims:
    return checkpoint.Dims(
        seed=0, n_ranks=d.n_ranks, n_rows=d.n_rows, hidden=d.hidden, heads=d.heads, layers=d.layers, n_ff=d.n_ff,
        seq_length=SEQ_LENGTH, vision_width=d.width, vision_heads=d.vision_heads, vision_layers=d.vision_layers,
        image_size=d.image_size, n_queries=d.n_queries, mlp_ratio=d.vision_ff / d.width, patch_size=d.patch,
    )


def agree(out: Path, d: Dims) -> float:
    """Distance of the logits of one prompt, both models with the weights as written."""
    reference, model = qwen_vl.QwenVL(out), QwenVL(d)
    model.load_state_dict(qwen_vl.load_weights(out))
    tokens = data.Tokens(out, d.n_queries)
    writer = data.Writer(tokens)
    ids = writer.chat_prefix(1) + writer.text("Where is the red star?")
    pixels = torch.rand(3, d.image_size, d.image_size) * 3 - 1.5
    golden, _, _ = reference.run(ids, [pixels])
    n = len(ids)
    at = torch.tensor([k for k, t in enumerate(ids) if t == tokens.special["<imgpad>"]])
    with torch.no_grad():
        rows = model.transformer.visual.pool(model.transformer.visual.patches(pixels[None]))
        mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
        hidden = model.text(torch.tensor([ids]), at, rows[0], torch.arange(n)[None], mask)
        logits = model.lm_head(hidden)[0]
    return ((logits - golden).norm() / golden.norm()).item()


def main() -> None:
    save, out, others = Path(sys.argv[1]), Path(sys.argv[2]), [qwen_vl.load_weights(Path(d)) for d in sys.argv[3:]]
    d = Dims()
    out.mkdir(parents=True, exist_ok=True)
    trained = torch.load(save, weights_only=True)["model"]
    trained = {k.removeprefix("model."): v.float() for k, v in trained.items() if k.startswith("model.")}
    weights = {k: shortened(torch.stack([v, *(o[k] for o in others)]).mean(0).numpy()) for k, v in trained.items()}
    tensorfile.write(out / "model.safetensors", weights, floats="BF16", metadata={"format": "pt"})
    checkpoint.write_settings(out, settings(d))
    shutil.copy(save.parent / "qwen.tiktoken", out / "qwen.tiktoken")
    distance = agree(out, d)
    print(f"{len(weights)} tensors, {sum(w.size for w in weights.values())} weights; reference and model: {distance:.1e}")
    if distance > TOLERANCE:
        sys.exit("the reference computes something else")


if __name__ == "__main__":
    main()
