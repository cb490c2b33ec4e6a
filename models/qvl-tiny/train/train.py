"""Train qvl-tiny: the three stages of the Qwen-VL paper in miniature.

    train.py RUN_DIR [--from CHECKPOINT_DIR] [--stage 1|2|3] [--steps N N N] [--rates R R R] [--pool N N] [--first-seed N] [--threads N]

1. Pre-training: vision tower and adapter learn to see (dense labels, see probe.py); the language model waits.
2. Multi-task: everything learns from all questions, raw and in chats. The tower, which has seen most of what it needs, learns in every
   third step only, where the dense labels go on with a small weight; the language model needs the time.
3. Fine-tuning: chats, two pictures, second turns; the vision tower is frozen. Half of the steps see the text weights
   rounded as 4-bit blocks would round them, so that quantised files keep their boxes.

Each stage begins with the last one's weights (the first with new ones, or those of --from) and is skipped when it is done. A run
that was stopped goes on from its last save (every 100 steps), with the same batches as if it had not been. Metrics go to RUN_DIR/log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import qwen_vl
import vocab
from data import Batch, Batcher, Mixture
from model import Dims, QwenVL
from optim import Muon
from probe import Head

SEED = 20230824
SAVE_EVERY = 100


@dataclass(frozen=True)
class Stage:
    """Steps, size and learning rate (peak, warmed up over 100 steps, linear to zero at the end from `decay_from` on);
    `vision_rate` is the share of it that tower and adapter get."""

    steps: int
    n_samples: int
    lr: float
    mixture: Mixture
    decay_from: float = 0.3
    vision_rate: float = 1.0
    length: int = 320


STAGES = {
    1: Stage(5000, 48, 2e-3, Mixture(0, 0, 0), decay_from=0.3),
    2: Stage(8100, 16, 1.5e-3, Mixture(raw=0.12, two=0.06, turns=0.1), decay_from=0.15, vision_rate=0.2),
    3: Stage(600, 16, 1.5e-3, Mixture(raw=0.06, two=0.18, turns=0.2), decay_from=0.0),
}
N_PICTURES, N_PAGES = 40_000, 20_000
FIRST_PAGE = 10_000_000  # seed
TOWER_EVERY = 3  # steps of stage 2
PAGES_BESIDE = 6  # pages a step of stage 2, and the weight of the dense labels there
SEE_WEIGHT = 0.3


class Trainee(nn.Module):
    """The model with the heads that teach it to see."""

    def __init__(self, d: Dims):
        super().__init__()
        self.model = QwenVL(d)
        self.patch_probe = Head(d.width, d.image_size // d.patch)
        self.row_probe = Head(d.hidden, math.isqrt(d.n_queries))


@contextmanager
def rounded(model: QwenVL):
    """Text matrices rounded to 4 bits in blocks of 32 (symmetric, one scale) while inside; gradients reach the real ones."""
    kept = {}
    for name, p in model.named_parameters():
        if ".visual." in name or p.dim() != 2 or not p.requires_grad:
            continue
        kept[name] = p.data.clone()
        blocks = p.data.view(-1, 32)
        scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-8) / 7.5
        p.data.copy_(((blocks / scale).round().clamp(-8, 7) * scale).view(p.shape))
    try:
        yield
    finally:
        for name, p in model.named_parameters():
            if name in kept:
                p.data.copy_(kept[name])


def rate(stage: Stage, step: int) -> float:
    done = step / stage.steps
    falling = 1.0 if done < stage.decay_from else (1 - done) / (1 - stage.decay_from)
    return stage.lr * min(1.0, (step + 1) / 100) * max(falling, 0.01)


def see(t: Trainee, labels: np.ndarray, table: np.ndarray, patches: Tensor, rows: Tensor) -> tuple[Tensor, dict]:
    """Loss of the dense labels, and how much is right."""
    labels, table = torch.from_numpy(labels.astype("int64")), torch.from_numpy(table)
    one, right_patch = t.patch_probe(patches, labels, table)
    two, right_row = t.row_probe(rows, labels, table)
    return one + two, {**{f"patch_{k}": v for k, v in right_patch.items()}, **{f"row_{k}": v for k, v in right_row.items()}}


def answer(model: QwenVL, b: Batch, rows: Tensor) -> Tensor:
    """Logits (n_targets, n_rows) of the ids to predict."""
    hidden = model.text(b.ids, b.image_at, rows.flatten(0, 1), b.positions, b.mask)
    return model.lm_head(hidden.flatten(0, 1)[b.target_at]).float()


def looking_step(t: Trainee, stage: Stage, step: int, pool: data.Pool, pages: data.Pool) -> dict[str, float]:
    """Gradients of the dense labels on half pictures, half pages; what was right."""
    parts = [p.draw(stage.n_samples // 2, SEED + step) for p in (pool, pages)]
    pixels, labels, table = (np.concatenate(x) for x in zip(*parts))
    visual = t.model.transformer.visual
    patches = visual.patches(data.normalised(pixels))
    loss, right = see(t, labels, table, patches, visual.pool(patches))
    loss.backward()
    return right | {"loss": loss.item()}


def answering_step(t: Trainee, number: int, step: int, b: Batch, pool: data.Pool, pages: data.Pool) -> dict[str, float]:
    """Gradients of the answers, and of the dense labels where the tower learns as well; what was right."""
    visual = t.model.transformer.visual
    tower_learns = number == 2 and step % TOWER_EVERY == 0
    with nullcontext() if tower_learns else torch.no_grad():
        patches = visual.patches(b.pixels)
    rows = visual.pool(patches)
    # The rounded weights must be there for the backward pass as well.
    with rounded(t.model) if number == 3 and step % 2 else nullcontext():
        logits = answer(t.model, b, rows)
        each = F.cross_entropy(logits, b.targets, reduction="none")
        loss = (each * b.weights).sum() / b.weights.sum()
        right = {"text_loss": loss.item(), "ids": (logits.argmax(-1) == b.targets).float().mean().item()}
        if tower_learns:
            pixels, labels, table = pages.draw(PAGES_BESIDE, SEED + step)
            more = visual.patches(data.normalised(pixels))
            labels = np.concatenate([pool.labels[b.picture_index], labels])
            table = np.concatenate([pool.table[b.picture_index], table])
            seen, facts = see(t, labels, table, torch.cat([patches, more]), torch.cat([rows, visual.pool(more)]))
            loss, right = loss + SEE_WEIGHT * seen, right | facts
        loss.backward()
    return right | {"loss": loss.item()}


def choose_what_learns(t: Trainee, number: int) -> None:
    """Stage 1: all but the language model. Stage 3: all but the tower. Never the adapter's table of positions."""
    for name, p in t.named_parameters():
        is_text = "visual." not in name and "probe" not in name
        is_tower = "visual." in name and not any(part in name for part in ("attn_pool", "ln_post", "visual.proj"))
        p.requires_grad_(not (name.endswith("pos_embed") or (number == 1 and is_text) or (number == 3 and is_tower)))


def train(run: Path, number: int, t: Trainee, pool: data.Pool, pages: data.Pool, tokens: data.Tokens, stage: Stage, log) -> None:
    """One stage, from its last save on."""
    d = t.model.d
    choose_what_learns(t, number)
    optimiser = Muon(t, d.vision_heads, stage.vision_rate)
    save = run / f"stage{number}.pt"
    first = 0
    if save.exists():
        saved = torch.load(save, weights_only=True)
        t.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    batcher = Batcher(pool, tokens, stage.n_samples, stage.length, SEED + number, stage.mixture)
    start, sums, n = time.time(), {}, 0
    coming = zip(range(first, stage.steps), repeat(None)) if number == 1 else batcher.batches(first, stage.steps)
    for step, batch in coming:
        with torch.autocast("cpu", torch.bfloat16):
            if batch is None:
                right = looking_step(t, stage, step, pool, pages)
            else:
                right = answering_step(t, number, step, batch, pool, pages)
        clip = nn.utils.clip_grad_norm_([p for p in t.parameters() if p.grad is not None], 2.0)
        optimiser.step(rate(stage, step))
        optimiser.zero_grad()
        for key, value in {**right, "grad": clip.item()}.items():
            sums.setdefault(key, []).append(value)
        n += 1
        if (step + 1) % 25 == 0:
            means = {k: round(sum(v) / len(v), 4) for k, v in sums.items()}
            print(json.dumps({"stage": number, "step": step + 1, "s": round((time.time() - start) / n, 3), **means}), file=log, flush=True)
            sums = {}
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
            part = save.with_suffix(".part")
            torch.save({"model": t.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}, part)
            part.replace(save)


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("run", type=Path)
    args.add_argument("--from", dest="origin", type=Path, help="go on from an exported checkpoint; its dense heads are new")
    args.add_argument("--stage", type=int, choices=(1, 2, 3), help="this one only")
    args.add_argument("--steps", type=int, nargs=3, help="of each stage, instead of the recipe's")
    args.add_argument("--rates", type=float, nargs=3, help="learning rate of each stage, instead of the recipe's")
    args.add_argument("--pool", type=int, nargs=2, default=(N_PICTURES, N_PAGES), help="pictures and pages to draw")
    args.add_argument("--first-seed", type=int, default=0, help="other pictures than those of the trainings before")
    args.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = args.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    d = Dims()
    if not (args.run / "qwen.tiktoken").exists():
        vocab.write(args.run / "qwen.tiktoken", d.n_ranks)
    tokens = data.Tokens(args.run, d.n_queries)
    pool = data.Pool(args.run / "pictures", args.first_seed, args.pool[0])
    pages = data.Pool(args.run / "pages", FIRST_PAGE + args.first_seed, args.pool[1], "page")
    t = Trainee(d)
    if args.origin:
        t.model.load_state_dict(qwen_vl.load_weights(args.origin))
    with open(args.run / "log.jsonl", "a") as log:
        for number in (1, 2, 3):
            before = args.run / f"stage{number - 1}.pt"
            if before.exists():
                t.load_state_dict(torch.load(before, weights_only=True)["model"], strict=False)
            if args.stage in (None, number):
                stage = STAGES[number]
                stage = replace(stage, steps=args.steps[number - 1]) if args.steps else stage
                stage = replace(stage, lr=args.rates[number - 1]) if args.rates else stage
                train(args.run, number, t, pool, pages, tokens, stage, log)


if __name__ == "__main__":
    main()
