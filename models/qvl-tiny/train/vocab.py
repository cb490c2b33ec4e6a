"""The vocabulary of qvl-tiny: byte-level BPE over the questions and answers of its own world.

Strings written in pictures are left out, so that no pair of capitals or digits is ever merged: the model spells what it
reads letter by letter.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reference"))
import questions  # noqa: E402
import vocabulary  # noqa: E402
import world  # noqa: E402
from tokenizer import PATTERN  # noqa: E402

# Capitals begin lines only: with a space before them they would merge with it, and so with the first letter of words.
GENERAL = """
You are a helpful assistant.
Picture 1:
Picture 2:
system
user
assistant
Yes, it is.
No, it is not.
Please describe this image.
Please read the text.
Can you tell me where it is?
你好
请问
谢谢
"""


def pieces(n_scenes: int = 6000) -> list[str]:
    """Pre-tokenised lines of text. What joins lines is never merged."""
    lines = GENERAL.splitlines() * 60 + ["),("] * 3000
    for seed in range(n_scenes):
        rng = random.Random(seed)
        asker = questions.Asker(world.make(seed), rng)
        for _ in range(4):
            turn = asker.turn()
            lines += [turn.question, turn.answer]
    text = re.sub(r"<box>.*?</box>|</?ref>", "\n", "\n".join(lines))
    text = re.sub(r"(?<![A-Za-z])[A-Z]+(?![a-z])|\d+", "", text)
    return [piece for line in text.splitlines() for piece in PATTERN.findall(line)]


def write(path: Path, n_ranks: int) -> None:
    """`qwen.tiktoken` with `n_ranks` tokens."""
    vocabulary.write(path, n_ranks, pieces())
