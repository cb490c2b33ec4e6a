"""Picture file -> pixel values, as the published code does it. The resizer is numpy only and bit-exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
FRACTION_BITS = 22


def read_rgb(path: Path, upright: bool = False) -> np.ndarray:
    """First frame as uint8 (h, w, 3), alpha dropped. `upright` applies the EXIF orientation (the published code never does)."""
    from PIL import Image, ImageOps

    with Image.open(path) as im:
        return np.asarray((ImageOps.exif_transpose(im) if upright else im).convert("RGB"))


def keys(x: float) -> float:
    """Keys' cubic kernel, a = -0.5."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


def taps(n_in: int, n_out: int) -> list[tuple[int, np.ndarray]]:
    """For each output sample: the first input sample and the fixed-point weights of the run that starts there."""
    scale = n_in / n_out
    fs = max(scale, 1.0)
    support = 2.0 * fs
    out = []
    for o in range(n_out):
        centre = (o + 0.5) * scale
        lo = max(int(centre - support + 0.5), 0)
        hi = min(int(centre + support + 0.5), n_in)
        w = [keys((i - centre + 0.5) / fs) for i in range(lo, hi)]
        total = 0.0
        for v in w:  # in order: the sum's rounding is part of the result
            total += v
        fixed = [v / total * (1 << FRACTION_BITS) for v in w]
        out.append((lo, np.array([int(v - 0.5) if v < 0 else int(v + 0.5) for v in fixed], np.int64)))
    return out


def resize_axis(x: np.ndarray, n_out: int, axis: int) -> np.ndarray:
    """One pass over one axis of uint8 (h, w, c); identity when the size stays."""
    if x.shape[axis] == n_out:
        return x
    src = np.moveaxis(x, axis, 0).astype(np.int64)
    dst = np.empty((n_out,) + src.shape[1:], np.int64)
    for o, (lo, k) in enumerate(taps(src.shape[0], n_out)):
        dst[o] = np.tensordot(k, src[lo : lo + len(k)], 1)
    dst = (dst + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS
    return np.moveaxis(np.clip(dst, 0, 255).astype(np.uint8), 0, axis)


def resize(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 (h, w, c) -> (height, width, c): horizontal pass first, each pass rounded to uint8."""
    return np.ascontiguousarray(resize_axis(resize_axis(rgb, width, 1), height, 0))


def normalise(rgb: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) -> float32 (3, h, w)."""
    x = rgb.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((x - MEAN) / STD).transpose(2, 0, 1))


def pixel_values(path: Path, image_size: int, upright: bool = False) -> np.ndarray:
    """File -> float32 (3, image_size, image_size)."""
    return normalise(resize(read_rgb(path, upright), image_size, image_size))
