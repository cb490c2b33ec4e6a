"""Train a small byte-level BPE vocabulary on corpus.txt, in the layout of qwen.tiktoken."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizer import PATTERN

CORPUS = Path(__file__).with_name("corpus.txt")


def byte_order() -> list[bytes]:
    """The 256 single bytes as rank tables of this family list them: printable Latin-1 first ("!" is 0), then the rest."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [bytes([b]) for b in printable + [b for b in range(256) if b not in printable]]


def train(n_ranks: int, pieces: Iterable[str]) -> list[bytes]:
    """`n_ranks` tokens in rank order, from pre-tokenised text. The most frequent pair wins, on ties the smallest."""
    words = Counter(tuple(piece.encode()[i : i + 1] for i in range(len(piece.encode()))) for piece in pieces)
    tokens = byte_order()
    known = set(tokens)
    while len(tokens) < n_ranks:
        pairs: Counter = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        a, b = min((p for p in pairs if p[0] + p[1] not in known), key=lambda p: (-pairs[p], p))
        tokens.append(a + b)
        known.add(a + b)
        merged: Counter = Counter()
        for word, n in words.items():
            out: list[bytes] = []
            for part in word:
                # `out` may end in the merged token only when that was just made, so (a, a) merges leftmost first
                if out and out[-1] == a and part == b:
                    out[-1] = a + b
                else:
                    out.append(part)
            merged[tuple(out)] += n
        words = merged
    return tokens


def write(path: Path, n_ranks: int, pieces: Iterable[str] | None = None) -> None:
    """Train on `pieces` (else on the corpus) and write "base64 rank" lines."""
    tokens = train(n_ranks, PATTERN.findall(CORPUS.read_text(encoding="utf-8")) if pieces is None else pieces)
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    Path(path).write_text("".join(lines))
