"""The Qwen tokenizer: byte-level BPE by rank, special tokens, image spans. Slow and small."""

from __future__ import annotations

import base64
import unicodedata
from pathlib import Path

import regex

PATTERN = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = (
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    + [f"<|extra_{i}|>" for i in range(205)]
    + ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
)
IMAGE_TAGS = SPECIALS[-9:]


class Tokenizer:
    """Text to ids and back. `n_queries` is the number of slots of an image span."""

    def __init__(self, model_dir: Path, n_queries: int = 256):
        lines = (line.split() for line in (Path(model_dir) / "qwen.tiktoken").read_bytes().splitlines())
        self.ranks = {base64.b64decode(line[0]): int(line[1]) for line in lines if line}
        self.special = {name: len(self.ranks) + i for i, name in enumerate(SPECIALS)}
        self.bytes = {i: b for b, i in self.ranks.items()} | {i: s.encode() for s, i in self.special.items()}
        self.n_queries = n_queries

    def merge(self, piece: bytes) -> list[int]:
        """BPE of one pre-tokenised piece: join the neighbours of lowest joint rank until none is a token."""
        if piece in self.ranks:
            return [self.ranks[piece]]
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while True:
            pairs = [(self.ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in self.ranks]
            if not pairs:
                return [self.ranks[p] for p in parts]
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    def ordinary(self, text: str) -> list[int]:
        """Ids of text in which nothing is special."""
        return [t for piece in PATTERN.findall(text) for t in self.merge(piece.encode())]

    def encode(self, text: str, specials: list[str] = SPECIALS) -> list[int]:
        """Ids of text in which `specials` count; an image span gets its path bytes and pads."""
        text = unicodedata.normalize("NFC", text)
        ids: list[int] = []
        pieces = regex.split("(" + "|".join(map(regex.escape, specials)) + ")", text)
        at = 0
        while at < len(pieces):
            piece = pieces[at]
            if at % 2 == 0:
                ids += self.ordinary(piece)
            elif piece == "<img>":
                if at + 2 >= len(pieces):
                    raise ValueError("unclosed image token")
                if pieces[at + 2] != "</img>":
                    raise TypeError("a special token inside an image span")
                path = pieces[at + 1].encode()
                if len(path) > self.n_queries:
                    raise ValueError(f"image path of {len(path)} bytes, at most {self.n_queries}")
                pads = [self.special["<imgpad>"]] * (self.n_queries - len(path))
                ids += [self.special["<img>"], *path, *pads, self.special["</img>"]]
                at += 2
            else:
                ids.append(self.special[piece])
            at += 1
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids (no image spans)."""
        return b"".join(self.bytes[i] for i in ids).decode("utf-8", "replace")

    def chat(self, query: str, system: str = "You are a helpful assistant.") -> list[int]:
        """ChatML of one user turn; in contents only the image tags are special."""
        start, end, newline = self.special["<|im_start|>"], self.special["<|im_end|>"], self.ordinary("\n")
        turn = lambda role, text: [start, *self.ordinary(role), *newline, *self.encode(text, IMAGE_TAGS), end]
        open_turn = [*newline, start, *self.ordinary("assistant"), *newline]
        return turn("system", system) + newline + turn("user", query) + open_turn


def picture_paths(text: str) -> list[str]:
    """The paths of the image spans of a raw prompt, in order."""
    return regex.findall(r"<img>(.*?)</img>", text)
