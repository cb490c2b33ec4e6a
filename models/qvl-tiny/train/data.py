"""Pictures and questions as tensors.

`Pool` holds drawn pictures with their scenes. `Batcher` asks about them: a sample is one or two pictures and as many
questions as fit, each of which sees the pictures and itself but no other question, so that a sample is the same as that
many prompts of one question and costs one encoding.
"""

from __future__ import annotations

import functools
import pickle
import random
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing import Pool as Processes
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import questions
import words
import world

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reference"))
import tokenizer as reference_tokenizer  # noqa: E402
from preprocess import MEAN, STD  # noqa: E402

CELL = 7  # pixels of a cell of the dense labels
N_CELLS = world.VIEW // CELL
MAX_ITEMS = 14
THOUSANDTHS = 0.15  # weight of a box's last digits
CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SHAPE_IDS = {name: k for k, name in enumerate((*world.SHAPES, "bar", "word"))}
COLOUR_IDS = {name: k for k, name in enumerate(world.COLOURS)}


def view(im: Image.Image) -> np.ndarray:
    """What the model sees: (VIEW, VIEW, 3) bytes, resized as the runtime does (Pillow's bicubic filter)."""
    return np.asarray(im.resize((world.VIEW, world.VIEW), Image.Resampling.BICUBIC))


def cells(s: world.Scene) -> np.ndarray:
    """Dense labels (3, N_CELLS, N_CELLS) int8: item index, character, place in its word; -1 is none."""
    out = np.full((3, N_CELLS, N_CELLS), -1, np.int8)
    centre = (np.arange(N_CELLS) + 0.5) * CELL / world.VIEW
    xs, ys = np.meshgrid(centre * s.width, centre * s.height)
    for n, i in enumerate(s.items[:MAX_ITEMS]):
        x1, y1, x2, y2 = i.box
        mx, my = 0.3 * CELL * s.width / world.VIEW, 0.3 * CELL * s.height / world.VIEW
        out[0][(xs >= x1 - mx) & (xs <= x2 + mx) & (ys >= y1 - my) & (ys <= y2 + my)] = n
        for k, (char, corners) in enumerate(i.chars):
            inside = np.ones_like(xs, bool)
            for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
                inside &= (bx - ax) * (ys - ay) - (by - ay) * (xs - ax) >= 0
            out[1][inside], out[2][inside] = CHARS.index(char), k
    return out


def item_table(s: world.Scene) -> np.ndarray:
    """(MAX_ITEMS, 6) float32: shape id, colour id, x1, y1, x2, y2 from 0 to 1."""
    out = np.zeros((MAX_ITEMS, 6), np.float32)
    for n, i in enumerate(s.items[:MAX_ITEMS]):
        shape = "word" if i.kind == "word" else i.name
        box = np.array(i.box) / (s.width, s.height, s.width, s.height)
        out[n] = SHAPE_IDS[shape], COLOUR_IDS[i.colour], *box
    return out


def draw(job: tuple[int, str | None]):
    seed, kind = job
    s = world.make(seed, kind=kind)
    pixels = view(world.render(s))
    labels, table = cells(s), item_table(s)
    for i in s.items:
        i.chars = []
    return pixels, labels, table, s


class Pool:
    """Pictures of the seeds `first`.. of one kind (None: the usual mixture), drawn once and kept on disk."""

    def __init__(self, folder: Path, first: int, n: int, kind: str | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "scenes.pickle").exists():
            shape = (n, world.VIEW, world.VIEW, 3)
            pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, shape)
            labels = np.empty((n, 3, N_CELLS, N_CELLS), np.int8)
            table, scenes = np.empty((n, MAX_ITEMS, 6), np.float32), []
            with Processes() as processes:
                for k, (p, l, t, s) in enumerate(processes.imap(draw, ((first + k, kind) for k in range(n)), chunksize=64)):
                    pixels[k], labels[k], table[k] = p, l, t
                    scenes.append(s)
            np.savez(folder / "labels.npz", labels=labels, table=table)
            (folder / "scenes.pickle").write_bytes(pickle.dumps(scenes))
        self.pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        with np.load(folder / "labels.npz") as z:
            self.labels, self.table = z["labels"], z["table"]
        self.scenes: list[world.Scene] = pickle.loads((folder / "scenes.pickle").read_bytes())

    def __len__(self) -> int:
        return len(self.scenes)

    def draw(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels, dense labels and item tables of `n` pictures drawn by lot."""
        pictures = np.random.default_rng(seed).integers(len(self), size=n)
        return self.pixels[pictures], self.labels[pictures], self.table[pictures]


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """Bytes (b, h, w, 3) -> float32 (b, 3, h, w)."""
    x = (torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255 - torch.from_numpy(MEAN)) / torch.from_numpy(STD)
    return x.permute(0, 3, 1, 2).contiguous()


class Tokens(reference_tokenizer.Tokenizer):
    """The reference tokenizer with a memory for pieces."""

    def __init__(self, model_dir: Path, n_queries: int):
        super().__init__(model_dir, n_queries)
        self.merge = functools.lru_cache(100_000)(super().merge)


@dataclass
class Batch:
    """Tensors of one step. `positions` are rotary positions, `segment` the question of each id (0: the pictures' part,
    seen by all)."""

    pixels: torch.Tensor  # (n_pictures, 3, s, s)
    picture_index: list[int]  # into the pool
    ids: torch.Tensor  # (b, t)
    positions: torch.Tensor  # (b, t)
    mask: torch.Tensor  # (b, 1, t, t)
    image_at: torch.Tensor  # (n_pictures * n_queries)
    targets: torch.Tensor  # (n_targets) ids to predict
    target_at: torch.Tensor  # (n_targets) flat indices of the positions that predict them
    weights: torch.Tensor  # (n_targets)
    kinds: list[str]


class Writer:
    """Ids of prompts and answers in both formats."""

    def __init__(self, tokens: Tokens):
        self.t = tokens
        s = tokens.special
        self.start, self.end, self.newline = s["<|im_start|>"], s["<|im_end|>"], tokens.ordinary("\n")
        self.eod = s["<|endoftext|>"]
        self.box, self.box_end = s["<box>"], s["</box>"]
        self.digits = {tokens.ordinary(str(k))[0] for k in range(10)}
        self.picture = lambda k: [*tokens.ordinary(f"Picture {k}: "), *self.slots(), *self.newline]

    def slots(self) -> list[int]:
        s = self.t.special
        return [s["<img>"], *[s["<imgpad>"]] * self.t.n_queries, s["</img>"]]

    def text(self, text: str) -> list[int]:
        return self.t.encode(text, reference_tokenizer.IMAGE_TAGS)

    def chat_prefix(self, n_pictures: int) -> list[int]:
        system = [self.start, *self.t.ordinary("system"), *self.newline, *self.t.ordinary("You are a helpful assistant."), self.end]
        out = system + self.newline + [self.start, *self.t.ordinary("user"), *self.newline]
        for k in range(n_pictures):
            out += self.picture(k + 1)
        return out

    def chat_turn(self, turn: questions.Turn, first: bool) -> tuple[list[int], list[int]]:
        """Prompt ids from the question on, and the answer's ids with its end."""
        prompt = [] if first else [*self.newline, self.start, *self.t.ordinary("user"), *self.newline]
        prompt += self.text(turn.question) + [self.end, *self.newline, self.start, *self.t.ordinary("assistant"), *self.newline]
        return prompt, self.text(turn.answer) + [self.end]

    def weights(self, ids: list[int], is_answer: list[bool]) -> list[float]:
        """What each id counts: 0 in prompts, little for the thousandths of boxes, which nobody can see at this size."""
        out, in_box = [], False
        for k, t in enumerate(ids):
            in_box = (in_box or t == self.box) and t != self.box_end
            last_digit = t in self.digits and k + 1 < len(ids) and ids[k + 1] not in self.digits
            out.append((THOUSANDTHS if in_box and last_digit else 1.0) * is_answer[k])
        return out

    def raw_turn(self, asker: questions.Asker, rng: random.Random) -> tuple[list[int], list[int], str]:
        """The base model's way: a text to complete, without roles."""
        kind = rng.random()
        if kind < 0.3:
            turn = asker.caption()
            return self.text("Describe the image in English:"), self.text(" " + turn.answer) + [self.eod], "raw_caption"
        if kind < 0.5 and (turn := asker.grounded_caption()):
            return self.text("Generate the caption in English with grounding:"), self.text(" " + turn.answer) + [self.eod], "raw_grounded"
        if kind < 0.8 and (turn := asker.where()) and turn.boxes:
            label, rest = turn.answer.split("</ref><box>")
            return self.text(label + "</ref><box>"), self.text(rest) + [self.eod], "raw_where"
        turn = asker.turn()
        return self.text(turn.question + " Answer:"), self.text(" " + turn.answer) + [self.eod], "raw_answer"


@dataclass(frozen=True)
class Mixture:
    """Shares of rows with a raw prompt and with two pictures, and of chats with a second turn."""

    raw: float
    two: float
    turns: float


class Batcher:
    """Batches over a pool. A batch depends on the seed and its number alone.

    `batches` makes the next ones in a process beside, since Python takes a sixth of a step's time for one.
    """

    def __init__(self, pool: Pool, tokens: Tokens, n_samples: int, length: int, seed: int, mixture: Mixture):
        self.pool, self.w, self.b, self.n, self.seed, self.mixture = pool, Writer(tokens), n_samples, length, seed, mixture
        self.rng = random.Random(seed)

    def branch(self, askers: list[questions.Asker], form: str) -> tuple[list[int], list[float], str]:
        """Ids of one question with its answer, the weight of each, and its kind."""
        rng = self.rng
        if form == "raw":
            prompt, answer, kind = self.w.raw_turn(askers[0], rng)
            ids = prompt + answer
            return ids, self.w.weights(ids, [False] * len(prompt) + [True] * len(answer)), kind
        turns = [askers[0].turn() if len(askers) == 1 else questions.about_two(*askers, rng)]
        if len(askers) == 1 and rng.random() < self.mixture.turns:
            after = askers[0].it(turns[0]) if rng.random() < 0.7 else None
            turns.append(after or askers[0].turn())
        ids, is_answer = [], []
        for k, turn in enumerate(turns):
            prompt, answer = self.w.chat_turn(turn, k == 0)
            ids += prompt + answer
            is_answer += [False] * len(prompt) + [True] * len(answer)
        return ids, self.w.weights(ids, is_answer), turns[-1].kind

    def sample(self, form: str):
        """One row: ids, positions, segments, weights, slot positions, pictures, kinds."""
        n_pictures = 2 if form == "two" else 1
        pictures = [self.rng.randrange(len(self.pool)) for _ in range(n_pictures)]
        askers = [questions.Asker(self.pool.scenes[p], self.rng) for p in pictures]
        if form == "raw":
            ids = self.w.slots()
            if self.rng.random() < 0.4:
                ids = self.w.picture(1)
        else:
            ids = self.w.chat_prefix(n_pictures)
        pad = self.w.t.special["<imgpad>"]
        slots = [k for k, t in enumerate(ids) if t == pad]
        n_prefix = len(ids)
        positions, segment, weights, kinds = list(range(n_prefix)), [0] * n_prefix, [0.0] * n_prefix, []
        misses, asked = 0, Counter()
        while misses < 6:
            new, weight, kind = self.branch(askers, form)
            answer = (kind, *(t for t, w in zip(new, weight) if w))
            asked[answer] += 1
            if len(ids) + len(new) > self.n or asked[answer] > 2:
                misses += 1
                continue
            kinds.append(kind)
            ids += new
            positions += range(n_prefix, n_prefix + len(new))
            segment += [len(kinds)] * len(new)
            weights += weight
        fill = self.n - len(ids)
        ids += [self.w.eod] * fill
        positions += [0] * fill
        segment += [-1] * fill
        weights += [0.0] * fill
        return ids, positions, segment, weights, slots, pictures, kinds

    def batch(self, step: int) -> Batch:
        self.rng.seed(f"{self.seed} {step}")
        n_two, n_raw = round(self.b * self.mixture.two), round(self.b * self.mixture.raw)
        forms = ["two"] * n_two + ["raw"] * n_raw + ["chat"] * (self.b - n_two - n_raw)
        rows = [self.sample(form) for form in forms]
        ids, positions, segment = (torch.tensor([r[k] for r in rows]) for k in range(3))
        weights = torch.tensor([r[3] for r in rows]).flatten()
        pictures = [p for r in rows for p in r[5]]
        image_at = torch.tensor([b * self.n + k for b, r in enumerate(rows) for k in r[4]])
        q, k = segment[:, :, None], segment[:, None, :]
        causal = torch.ones(self.n, self.n, dtype=torch.bool).tril()
        mask = causal & ((k == q) | (k == 0))
        # An answer id is predicted by the id before it; the first of a branch is always a prompt's.
        target_at = weights.nonzero()[:, 0]
        return Batch(
            normalised(self.pool.pixels[pictures]), pictures, ids, positions, mask[:, None], image_at,
            ids.flatten()[target_at], target_at - 1, weights[target_at], [kind for r in rows for kind in r[6]],
        )

    def batches(self, first: int, end: int) -> Iterator[tuple[int, Batch]]:
        """Numbers and batches from `first` up to `end`."""
        with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=self.adopt) as process:
            coming = deque(process.submit(next_batch, k) for k in range(first, min(first + 3, end)))
            for step in range(first, end):
                batch = coming.popleft().result()
                if step + 3 < end:
                    coming.append(process.submit(next_batch, step + 3))
                yield step, batch

    def adopt(self) -> None:
        global batcher
        batcher = self
        torch.set_num_threads(1)


batcher: Batcher


def next_batch(step: int) -> Batch:
    return batcher.batch(step)
