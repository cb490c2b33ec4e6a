"""Draw the small test pictures: computed, so nobody owns them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def gradient() -> Image.Image:
    """200 x 150 RGB: two gradients and a disc."""
    y, x = np.mgrid[0:150, 0:200]
    rgb = np.stack([x * 255 // 199, y * 255 // 149, (x + y) * 255 // 348], -1)
    rgb[(x - 70) ** 2 + (y - 80) ** 2 < 35**2] = (250, 40, 30)
    return Image.fromarray(rgb.astype(np.uint8), "RGB")


def shapes() -> Image.Image:
    """64 x 64 RGBA: hard edges and an alpha ramp over colours that compositing would change."""
    y, x = np.mgrid[0:64, 0:64]
    rgba = np.zeros((64, 64, 4), np.int64)
    rgba[..., :3] = np.where(((x // 8 + y // 8) % 2 == 0)[..., None], (240, 240, 230), (20, 60, 120))
    rgba[10:30, 12:40, :3] = (30, 160, 60)
    rgba[abs(x - 44) + abs(y - 44) < 14, :3] = (230, 190, 20)
    rgba[..., 3] = x * 4
    return Image.fromarray(rgba.astype(np.uint8), "RGBA")


def stripes() -> Image.Image:
    """300 x 40, palette: one axis shrinks and the other grows, and there is fine detail to alias."""
    y, x = np.mgrid[0:40, 0:300]
    index = (x // (1 + x // 40) + y // 5) % 7
    im = Image.fromarray(index.astype(np.uint8), "P")
    colours = [(0, 0, 0), (255, 255, 255), (200, 30, 40), (20, 120, 220), (250, 220, 60), (60, 180, 90), (130, 60, 160)]
    im.putpalette([v for c in colours for v in c])
    return im


def grey16() -> Image.Image:
    """50 x 70, 16-bit grey with values 257 * k, so that every sane scaling to 8 bits gives k."""
    y, x = np.mgrid[0:70, 0:50]
    return Image.fromarray((((x * 5 + y * 3) % 256) * 257).astype(np.uint16))


def turned() -> Image.Image:
    """90 x 60 as stored, upright 60 x 90: a dark bar at the stored left edge."""
    y, x = np.mgrid[0:60, 0:90]
    rgb = np.stack([180 + x // 3, 120 + y, 200 - x], -1)
    rgb[:, :20] = (30, 40, 60)
    return Image.fromarray(rgb.astype(np.uint8), "RGB")


def draw_all(out: Path) -> None:
    """Write the five files."""
    out.mkdir(parents=True, exist_ok=True)
    for picture in (gradient, shapes, stripes, grey16):
        picture().save(out / f"{picture.__name__}.png", optimize=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn 90 degrees clockwise to see it upright
    turned().save(out / "turned.jpg", quality=92, exif=exif)
