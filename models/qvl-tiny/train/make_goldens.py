"""Goldens of models/qvl-tiny, by the reference implementation: make_goldens.py [REPOSITORY]

Writes tests/data/goldens-tiny in the form of tests/data/goldens (the README there explains the files). Needs Pillow <= 12.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reference"))
import preprocess  # noqa: E402
import tensorfile  # noqa: E402
from make_goldens import text_golden, write_cases  # noqa: E402
from qwen_vl import QwenVL  # noqa: E402
from tokenizer import Tokenizer, picture_paths  # noqa: E402

PICTURES = "models/qvl-tiny/demo"
CASES = [
    {"name": "box", "mode": "chat", "text": "Picture 1: <img>shapes.png</img>\nWhere is the purple star?", "n_predict": 40},
    {"name": "read", "mode": "chat", "text": "Picture 1: <img>sign.png</img>\nWhat does the word say?", "n_predict": 16},
    {
        "name": "two_pictures",
        "mode": "raw",
        "text": "Picture 1: <img>sign.png</img>\nPicture 2: <img>shapes.png</img>\nWhich picture has more objects? Answer:",
        "n_predict": 8,
    },
    {"name": "region", "mode": "raw", "text": "<img>shapes.png</img><ref>green square</ref><box>", "n_predict": 24},
]


def main() -> None:
    torch.set_num_threads(1)
    repository = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[3]
    out = repository / "tests/data/goldens-tiny"
    out.mkdir(parents=True, exist_ok=True)
    model = QwenVL(repository / "models/qvl-tiny")
    vision = model.config.visual
    tokens = Tokenizer(repository / "models/qvl-tiny", vision.n_queries)
    names = ["pixel_values", "ln_pre", "block.0", f"block.{vision.layers - 1}", "resampler", "embedding"]
    pixels = {}
    for file in sorted({p for case in CASES for p in picture_paths(case["text"])}):
        pixels[file] = torch.from_numpy(preprocess.pixel_values(repository / PICTURES / file, vision.image_size))
        trace: dict = {}
        with torch.no_grad():
            model.vision.encode(pixels[file], trace)
        tensorfile.write(out / f"picture.{file}.safetensors", {name: trace[name].numpy() for name in names})
    entries = [text_golden(case, model, tokens, pixels, out) for case in CASES]
    write_cases(out, "models/qvl-tiny", PICTURES, tokens, entries)


if __name__ == "__main__":
    main()
