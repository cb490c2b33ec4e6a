"""Write examples to calibrate an importance matrix with: calibration.py OUT_DIR [N_PICTURES].

Pictures and questions as training draws them (seeds, strings and pairs that the held-out set never shows), in the form that
`qvl imatrix` reads: OUT_DIR/calibration.jsonl, four questions a picture, and the pictures beside it.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import world
from questions import Asker

FIRST_SEED = 800_000_000
KINDS = ("shapes", "text", "mixed", "chart")
N_QUESTIONS = 4


def main() -> None:
    out, n = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(FIRST_SEED)
    lines = []
    for k in range(n):
        scene = world.make(FIRST_SEED + k, kind=KINDS[k % len(KINDS)])
        world.render(scene).save(out / f"{k:03}.png", optimize=True)
        asker = Asker(scene, rng)
        for turn in (asker.turn() for _ in range(N_QUESTIONS)):
            lines.append({"id": len(lines), "image": f"{k:03}.png", "prompt": turn.question, "answer": turn.answer})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "calibration.jsonl").write_text(text)
    print(len(lines), "examples,", n, "pictures")


if __name__ == "__main__":
    main()
