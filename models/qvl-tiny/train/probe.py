"""Dense labels for the vision tower: what is at each place, and where it ends.

OpenCLIP's tower had seen two billion pictures before Qwen-VL was trained on it. This stands in for that: linear heads
read from every patch, and from every row of the adapter, which thing covers it, its colour, its box, and which letters
are there at which place of their word. The heads are thrown away after training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import CHARS, COLOUR_IDS, MAX_ITEMS, N_CELLS, SHAPE_IDS

N_CHARS, N_PLACES = len(CHARS) + 1, 9  # the last class of each is "none"
N_SHAPES, N_COLOURS = len(SHAPE_IDS) + 1, len(COLOUR_IDS) + 1
# Cycles over the picture. The digits of a coordinate are no linear function of it; those of hundredths can be read from
# the phase at 10 cycles, and the slower ones lead there.
CYCLES = (1, 2, 4, 6, 8, 10)


class Head(nn.Module):
    """Reads the places of a grid of `side` x `side` rows, each of k x k cells."""

    def __init__(self, width: int, side: int):
        super().__init__()
        self.side, self.k = side, N_CELLS // side
        self.sizes = [self.k**2 * N_CHARS, self.k**2 * N_PLACES, N_SHAPES, N_COLOURS, 4]
        self.norm = nn.LayerNorm(width)
        self.probe_out = nn.Linear(width, sum(self.sizes))
        self.probe_digits = nn.Linear(width, 4 * 2 * 10)
        self.probe_phases = nn.Linear(width, 4 * len(CYCLES) * 2)

    def grid(self, cells: Tensor) -> Tensor:
        """(b, N_CELLS, N_CELLS) -> (b, side * side, k * k)."""
        b = len(cells)
        return cells.view(b, self.side, self.k, self.side, self.k).transpose(2, 3).reshape(b, self.side**2, -1)

    def forward(self, x: Tensor, labels: Tensor, table: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss, and the share that is right where something is.

        x (b, side * side, width), labels (b, 3, N_CELLS, N_CELLS) int64, table (b, MAX_ITEMS, 6).
        """
        b, n, _ = x.shape
        x = self.norm(x)
        chars, places, shapes, colours, boxes = self.probe_out(x).float().split(self.sizes, -1)
        items = self.grid(labels[:, 0])
        votes = F.one_hot(items + 1, MAX_ITEMS + 1)[..., 1:].sum(2)
        item, there = votes.argmax(-1), votes.sum(-1) > 0
        facts = torch.gather(table, 1, item[..., None].expand(-1, -1, 6))
        char, place = self.grid(labels[:, 1]), self.grid(labels[:, 2])

        def classify(logits: Tensor, target: Tensor, present: Tensor, n_classes: int) -> tuple[Tensor, float]:
            target = torch.where(present, target, n_classes - 1).flatten()
            logits, present = logits.reshape(-1, n_classes), present.flatten()
            each = F.cross_entropy(logits, target, reduction="none")
            some, none = each[present], each[~present]
            right = (logits.argmax(-1) == target)[present].float().mean().item() if len(some) else 1.0
            return some.sum() / max(len(some), 1) + 0.3 * none.sum() / max(len(none), 1), right

        l_char, r_char = classify(chars.reshape(b, n, -1, N_CHARS), char, char >= 0, N_CHARS)
        l_place, r_place = classify(places.reshape(b, n, -1, N_PLACES), place, place >= 0, N_PLACES)
        l_shape, r_shape = classify(shapes, facts[..., 0].long(), there, N_SHAPES)
        l_colour, r_colour = classify(colours, facts[..., 1].long(), there, N_COLOURS)
        error = (boxes[there] - facts[..., 2:][there]).abs().mean()
        angles = facts[there][:, 2:, None] * (2 * math.pi * torch.tensor(CYCLES))
        waves = torch.stack([angles.cos(), angles.sin()], -1)
        l_phase = (self.probe_phases(x[there]).float().view(waves.shape) - waves).square().mean((0, 1, 3))
        # The first two of the digits that the language model will have to say: a number alone is hard to turn into them.
        digits = self.probe_digits(x[there]).float().view(-1, 4, 2, 10)
        thousandths = (facts[there][:, 2:] * 1000).clamp(0, 999).long()
        truth = torch.stack([thousandths // 100, thousandths // 10 % 10], -1)
        l_digit = F.cross_entropy(digits.flatten(0, 2), truth.flatten(), reduction="none").view(truth.shape).mean((0, 1))
        r_digit = (digits.argmax(-1) == truth).float().mean((0, 1)).tolist()
        loss = l_char + 0.5 * l_place + 0.5 * l_shape + 0.5 * l_colour + 10 * error + l_digit.sum()
        loss = loss + 4 * l_phase.mean()
        right = {"char": r_char, "place": r_place, "shape": r_shape, "colour": r_colour, "box": error.item()}
        return loss, right | {"digit1": r_digit[0], "digit2": r_digit[1], "phase": l_phase[-1].item()}
