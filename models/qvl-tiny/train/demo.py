"""Draw the pictures that the README and ./demo.sh show: demo.py OUT_DIR (models/qvl-tiny/demo)."""

from __future__ import annotations

import sys
from pathlib import Path

import world
from world import COLOURS, Item, Scene

FONT = "dejavu/DejaVuSans-Bold.ttf"


def shape(colour: str, name: str, x: float, y: float, r: float, angle: float = 0.0) -> Item:
    box = world.bounds(world.outline(name, x, y, r, angle))
    return Item("shape", name, colour, box, (x, y), r, angle, rgb=COLOURS[colour])


def word(text: str, colour: str, x: float, y: float, size: int, angle: float, board: str | None = None) -> Item:
    plate = COLOURS[board] if board else None
    return Item("word", text, colour, (0, 0, 0, 0), (x, y), float(size), angle, FONT, plate, COLOURS[colour])


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    ground = {"kind": "gradient", "base": (236, 232, 220), "other": (206, 220, 232), "cell": 20, "seed": 1}
    # Training showed neither a purple star nor the word WATER.
    shapes = Scene(480, 420, ground, [
        shape("purple", "star", 110, 125, 62),
        shape("blue", "circle", 360, 110, 48),
        shape("green", "square", 130, 320, 46, 0.2),
        word("WATER", "black", 335, 300, 60, 0.08),
    ])
    sign = Scene(420, 360, {"kind": "checks", "base": (190, 200, 205), "other": (182, 193, 200), "cell": 30, "seed": 1}, [
        word("TIGER", "black", 210, 110, 62, 0.12),
        shape("yellow", "triangle", 110, 265, 52),
        shape("red", "heart", 310, 262, 46),
    ])
    for name, scene in {"shapes": shapes, "sign": sign}.items():
        world.render(scene).save(out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
