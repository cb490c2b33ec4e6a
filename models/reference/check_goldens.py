"""Compare this reference with goldens of the published code: check_goldens.py GOLDENS_DIR [CASE_DIR]

GOLDENS_DIR holds `images/` and CASE_DIR (default `tiny-a`) with `hf/` and `golden/`. Prints the relative L2 distance of
everything compared; exits 1 if one exceeds TOLERANCE, a resized picture differs, or greedy ids differ before the first
step whose margin is below MARGIN.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

import preprocess
import tensorfile
from qwen_vl import QwenVL
from tokenizer import Tokenizer

TOLERANCE = 1e-5
MARGIN = 1e-3
VISION_NAMES = {
    "adapter.attn_pool": "resampler",
    "adapter.ln_post": "ln_post",
    "adapter.out": "embedding",
    "adapter.ln_q": "ln_q",
    "adapter.ln_kv": "ln_kv",
    "adapter.key_pos_embed": "key_pos_embed",
}
failures: list[str] = []


def distance(ours: np.ndarray, golden: np.ndarray) -> float:
    """Relative L2; infinite when the shapes differ."""
    if ours.shape != golden.shape:
        return float("inf")
    ours, golden = ours.astype(np.float64), golden.astype(np.float64)
    return float(np.linalg.norm(ours - golden) / max(np.linalg.norm(golden), 1e-30))


def compare(label: str, ours: dict, golden: dict, names: dict[str, str]) -> None:
    """One line: the worst tensor, and those a reader asks about first."""
    found = {g: distance(np.asarray(ours[names.get(g, g)]), golden[g]) for g in golden if g != "prompt_logprobs"}
    worst = max(found, key=found.get)
    shown = [f"{g} {found[g]:.1e}" for g in ("pixel_values", "adapter.out", "logits", "gen_logits") if g in found]
    print(f"{label:36} worst of {len(found):2}: {worst} {found[worst]:.1e}   " + "  ".join(shown))
    if found[worst] > TOLERANCE:
        failures.append(f"{label} {worst}")


def same_until_unsure(ours: list[int], golden: list[int], margins: list[float]) -> tuple[int, int]:
    """(steps that agree, steps that must)."""
    agree = next((i for i, (a, b) in enumerate(zip(ours, golden)) if a != b), len(golden))
    must = next((i for i, m in enumerate(margins) if m < MARGIN), len(golden))
    return agree, must


def main() -> None:
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    case = root / (sys.argv[2] if len(sys.argv) > 2 else "tiny-a")
    cases = json.loads((case / "golden/cases.json").read_text())
    model = QwenVL(case / "hf")
    size = model.config.visual.image_size
    tokens = Tokenizer(case / "hf", model.config.visual.n_queries)

    resized = tensorfile.read(root / "images/resized.safetensors")
    for name, golden in resized.items():
        picture = name.split("/")[0]
        ours = preprocess.resize(preprocess.read_rgb(root / "images" / picture), golden.shape[1], golden.shape[0])
        differ = int((ours != golden).sum())
        print(f"{'resize ' + name:36} {differ} of {ours.size} bytes differ, at most {int(abs(ours.astype(int) - golden).max())}")
        if differ:
            failures.append(name)

    pixels = lambda picture: torch.from_numpy(preprocess.pixel_values(root / "images" / picture, size))
    for picture, info in cases["vision"].items():
        trace: dict = {}
        with torch.no_grad():
            model.vision.encode(pixels(picture), trace)
        compare("vision " + picture, trace, tensorfile.read(case / "golden" / info["file"]), VISION_NAMES)

    pictures_of = {"two_images": ["a.png", "b.png"], "bare_image_caption": ["b.png"]}
    for name, info in cases["text"].items():
        ids = info["prompt_ids"]
        n_pictures = ids.count(model.config.visual.image_start_id)
        pictures = pictures_of.get(name, ["a.png"])[:n_pictures]
        trace = {}
        n = len(info["greedy_ids"])
        _, out, rows = model.run(ids, [pixels(p) for p in pictures], n_predict=n, trace=trace)
        trace["gen_logits"] = rows
        golden = tensorfile.read(case / "golden" / info["file"])
        compare("text " + name, trace, golden, {})
        agree, must = same_until_unsure(out, info["greedy_ids"], info["greedy_top2_margins"])
        text = tokens.decode(out) == info["greedy_text"]
        print(f"{'':36} greedy ids agree {agree}/{n} (must: {must}), text {'agrees' if text else 'DIFFERS'}")
        if agree < must:
            failures.append(f"{name} greedy ids")

    print("FAILED: " + ", ".join(failures) if failures else "all within tolerance")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
