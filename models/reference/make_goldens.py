"""Make models/qvl-random, tests/data/pictures and tests/data/goldens: make_goldens.py [REPOSITORY]

Needs Pillow <= 12 (13 resizes in another order). tests/data/goldens/README.md, written here, explains the files.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

import checkpoint
import pictures
import preprocess
import tensorfile
from qwen_vl import QwenVL, ntk_alpha
from tokenizer import SPECIALS, Tokenizer, picture_paths

DIMS = checkpoint.Dims(
    seed=20230822,
    n_ranks=1100,
    n_rows=1408,
    hidden=256,
    heads=4,
    layers=2,
    n_ff=512,
    seq_length=128,
    vision_width=96,
    vision_heads=4,
    vision_layers=3,
    image_size=126,
    n_queries=25,
)
N_USED = DIMS.n_ranks + len(SPECIALS)
SENTENCES = Path(__file__).with_name("corpus.txt").read_text(encoding="utf-8").splitlines()

PICTURE_TENSORS = ["pixel_values", "ln_pre", "block.0", f"block.{DIMS.vision_layers - 1}", "resampler", "embedding"]
RESIZES = [  # width, height -> width, height
    (37, 53, 126, 126),
    (500, 400, 126, 126),
    (126, 90, 126, 126),
    (90, 126, 126, 126),
    (300, 40, 126, 126),
    (1, 1, 126, 126),
    (1000, 3, 448, 448),
    (449, 447, 448, 448),
    (640, 480, 448, 448),
    (13, 1000, 224, 112),
]
README = """# Goldens of models/qvl-random

Written by `models/reference/make_goldens.py`: float32, weights are the stored bf16 ones, Pillow {pillow}, torch {torch}.
The reference itself agrees with the published code's goldens to 1e-6 (`check_goldens.py`).

- `cases.json`: per case the mode (`raw`: `qvl trace --raw`, `chat`: without it), the text as the tokenizer sees it
  (`text`; in chat mode the user's turn), the pictures in order, `ids` (prompt ids, picture slots = `<imgpad>`, for
  `qvl trace --ids` with one `-i` a picture), `tokenizer_ids` (slots = path bytes, as the reference's tokenizer makes
  them), `ntk_alpha`, `generated_ids` (greedy over the {used} used ids: the padding rows of the vocabulary are never
  chosen), and the margin between the two best used logits at each step: compare ids up to the first small one.
- `text.CASE.safetensors`: `input_ids`, `logits_rows` (i32: which positions `logits` holds), `logits`,
  `generated_ids`, `generated_logits` (row i is what id i was chosen from). Logit rows have all {rows} columns, unmasked.
- `picture.FILE.safetensors`: what `qvl trace` calls `image.k.NAME`: {names}.
- `picture_bytes.safetensors`: `FILE` [size, size, 3], u8 after conversion to RGB and resize, for all pictures, as the
  published code reads them (no EXIF orientation). `turned.jpg.upright` is what `qvl` sees by default. Another JPEG decoder than
  libjpeg-turbo may differ by a few levels. `grey16.png` is scaled (value / 257), not clipped as the published code does.
- `resize.json`: sha256 of Pillow's bicubic resize of RGB noise, [h, w, 3] row-major. The noise: x = seed;
  per byte x = x * 6364136223846793005 + 1442695040888963407 mod 2^64, the byte is x >> 56.
"""


def cases() -> list[dict]:
    """The prompts. Pictures are named relative to tests/data/pictures; a path must fit in the span."""
    long_text = " ".join(SENTENCES[5:8])
    return [
        {"name": "text_short", "mode": "raw", "text": "What is in the picture? 你好,世界! It's 42.", "n_predict": 12},
        {
            "name": "one_picture",
            "mode": "raw",
            "text": "Picture 1: <img>gradient.png</img>\nDescribe the picture in one sentence.",
            "n_predict": 12,
        },
        {
            "name": "two_pictures",
            "mode": "raw",
            "text": "Compare <img>shapes.png</img> with <img>stripes.png</img>: what is different?<ref>the box</ref><box>",
            "n_predict": 12,
        },
        {"name": "chat", "mode": "chat", "text": "Picture 1: <img>stripes.png</img>\n这是什么?", "n_predict": 12},
        {"name": "crossing", "mode": "raw", "text": long_text, "n_ids": DIMS.seq_length - 6, "n_predict": 16},
        {
            "name": "long",
            "mode": "raw",
            "text": "Picture 1: <img>gradient.png</img>\n" + " ".join(SENTENCES[5:12]),
            "n_ids": 2 * DIMS.seq_length + 9,
            "n_predict": 8,
        },
        {"name": "long_text", "mode": "raw", "text": long_text, "n_ids": DIMS.seq_length + 1, "n_predict": 8},
    ]


def fit(tokens: Tokenizer, text: str, n_ids: int) -> str:
    """Shorten `text` to exactly `n_ids` ids, at the end."""
    while len(tokens.encode(text)) > n_ids:
        text = text[:-1]
    while len(tokens.encode(text)) < n_ids:
        text += "!\n"[len(tokens.encode(text)) % 2]
    assert len(tokens.encode(text)) == n_ids, "no text of that length found: change the sentence"
    return text


def slots_to_pads(ids: list[int], tokens: Tokenizer) -> list[int]:
    """Path bytes in image spans become <imgpad>, as in `qvl trace`."""
    out, inside = [], False
    for t in ids:
        inside = inside and t != tokens.special["</img>"]
        out.append(tokens.special["<imgpad>"] if inside else t)
        inside = inside or t == tokens.special["<img>"]
    return out


def noise(n: int, seed: int) -> bytes:
    out, x = bytearray(n), seed
    for i in range(n):
        x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
        out[i] = x >> 56
    return bytes(out)


def resize_goldens() -> list[dict]:
    """Made by Pillow; ours must agree."""
    out = []
    for seed, (w, h, to_w, to_h) in enumerate(RESIZES, 1):
        raw = noise(w * h * 3, seed)
        golden = np.asarray(Image.frombytes("RGB", (w, h), raw).resize((to_w, to_h), Image.Resampling.BICUBIC))
        ours = preprocess.resize(np.frombuffer(raw, np.uint8).reshape(h, w, 3), to_w, to_h)
        assert np.array_equal(golden, ours)
        sha = hashlib.sha256(golden.tobytes()).hexdigest()
        first = golden.reshape(-1)[:12].tolist()
        out.append({"seed": seed, "from": [w, h], "to": [to_w, to_h], "sha256": sha, "first_bytes": first})
    return out


def picture_goldens(model: QwenVL, folder: Path, out: Path, used: list[str]) -> dict[str, torch.Tensor]:
    """Vision goldens of the pictures that prompts use, resized bytes of all; returns pixel values by file name."""
    size, pixels, resized = DIMS.image_size, {}, {}
    for path in sorted(folder.iterdir()):
        rgb = preprocess.read_rgb(path)
        if path.name == "grey16.png":
            with Image.open(path) as im:
                rgb = np.repeat((np.asarray(im).astype(np.int64) // 257).astype(np.uint8)[..., None], 3, 2)
        resized[path.name] = preprocess.resize(rgb, size, size)
        if path.suffix == ".jpg":
            resized[path.name + ".upright"] = preprocess.resize(preprocess.read_rgb(path, upright=True), size, size)
        if path.name in used:
            pixels[path.name] = torch.from_numpy(preprocess.normalise(resized[path.name]))
            trace: dict = {}
            with torch.no_grad():
                embedding = model.vision.encode(pixels[path.name], trace)
            print(f"{path.name}: embedding std {embedding.std():.3f}, resampler std {trace['resampler'].std():.3f}")
            arrays = {name: trace[name].numpy() for name in PICTURE_TENSORS}
            tensorfile.write(out / f"picture.{path.name}.safetensors", arrays)
    tensorfile.write(out / "picture_bytes.safetensors", resized)
    return pixels


def text_golden(case: dict, model: QwenVL, tokens: Tokenizer, pixels: dict[str, torch.Tensor], out: Path) -> dict:
    """Run one case, write its tensors, return its entry of cases.json."""
    text = fit(tokens, case["text"], case["n_ids"]) if "n_ids" in case else case["text"]
    tokenizer_ids = tokens.chat(text) if case["mode"] == "chat" else tokens.encode(text)
    ids, names = slots_to_pads(tokenizer_ids, tokens), picture_paths(text)
    stop = tuple(tokens.special[s] for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    n_ranks, n_used = len(tokens.ranks), len(tokens.bytes)
    logits, generated, rows = model.run(ids, [pixels[n] for n in names], case["n_predict"], n_used=n_used, stop=stop)
    best = rows[:, :n_used].topk(2).values
    margins = [round(float(m), 6) for m in best[:, 0] - best[:, 1]]
    kept = sorted({*range(0, len(ids), 16), *range(max(len(ids) - 4, 0), len(ids))})
    arrays = {
        "input_ids": np.array(ids, np.int32),
        "logits_rows": np.array(kept, np.int32),
        "logits": logits[kept].numpy(),
        "generated_ids": np.array(generated, np.int32),
        "generated_logits": rows.numpy(),
    }
    file = f"text.{case['name']}.safetensors"
    tensorfile.write(out / file, arrays)
    padded = int((rows.argmax(-1) >= n_used).sum())
    special = sum(t >= n_ranks for t in generated)
    print(
        f"{case['name']}: {len(ids)} ids, {len(generated)} generated, logits std {logits.std():.2f}, smallest margin "
        f"{min(margins):.4f}, padding would win {padded} steps, {special} specials: {tokens.decode(generated)!r}"
    )
    return {
        "name": case["name"],
        "mode": case["mode"],
        "text": text,
        "pictures": names,
        "ids": ids,
        "tokenizer_ids": tokenizer_ids,
        "ntk_alpha": ntk_alpha(len(ids), model.config.seq_length),
        "generated_ids": generated,
        "generated_text": tokens.decode(generated),
        "top2_margins": margins,
        "logits_std": round(float(logits.std()), 4),
        "file": file,
    }


def write_cases(out: Path, model: str, pictures: str, tokens: Tokenizer, entries: list[dict]) -> None:
    """cases.json: a line a value."""
    line = lambda value: json.dumps(value, ensure_ascii=False)
    whole = {
        "model": model,
        "pictures": pictures,
        "n_used": len(tokens.bytes),
        "special": {s: tokens.special[s] for s in SPECIALS if not s.startswith("<|extra")},
        "cases": "@",
    }
    body = json.dumps(whole, ensure_ascii=False, indent=1)
    per_case = ["  {\n" + ",\n".join(f"   {line(k)}: {line(v)}" for k, v in e.items()) + "\n  }" for e in entries]
    (out / "cases.json").write_text(body.replace('"@"', "[\n" + ",\n".join(per_case) + "\n ]") + "\n")


def main() -> None:
    torch.set_num_threads(1)
    assert int(PIL.__version__.split(".")[0]) <= 12, "Pillow 13 resizes in another order"
    repository = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    model_dir = repository / "models/qvl-random"
    folder, out = repository / "tests/data/pictures", repository / "tests/data/goldens"
    out.mkdir(parents=True, exist_ok=True)

    checkpoint.write(model_dir, DIMS)
    pictures.draw_all(folder)
    model, tokens = QwenVL(model_dir), Tokenizer(model_dir, DIMS.n_queries)
    used = sorted({p for case in cases() for p in picture_paths(case["text"])})
    pixels = picture_goldens(model, folder, out, used)
    entries = [text_golden(case, model, tokens, pixels, out) for case in cases()]
    write_cases(out, "models/qvl-random", "tests/data/pictures", tokens, entries)
    line = lambda value: json.dumps(value, ensure_ascii=False)
    (out / "resize.json").write_text("[\n" + ",\n".join(line(r) for r in resize_goldens()) + "\n]\n")
    facts = {"pillow": PIL.__version__, "torch": torch.__version__, "used": N_USED, "rows": DIMS.n_rows}
    (out / "README.md").write_text(README.format(names=", ".join(f"`{n}`" for n in PICTURE_TENSORS), **facts))


if __name__ == "__main__":
    main()
