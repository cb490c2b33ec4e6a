"""Muon for matrices (momentum, orthogonalised by Newton-Schulz iterations), AdamW for everything else.

After Keller Jordan's Muon (2024), with updates scaled to the size of AdamW's so that one learning rate serves both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def orthogonalise(g: Tensor) -> Tensor:
    """(n, rows, columns) -> the nearest (semi-)orthogonal matrices, roughly: singular values end near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x if wide else x.transpose(1, 2)).float()


def parts(name: str, p: Tensor, vision_heads: int) -> Tensor:
    """A weight as (n, rows, columns): fused projections are taken apart into q, k and v."""
    if name.endswith(("c_attn.weight", "in_proj_weight")):
        return p.view(3, -1, p.shape[-1])
    if name.endswith("in_proj.weight"):
        return p.view(vision_heads, 3, -1, p.shape[-1]).transpose(0, 1).reshape(3, -1, p.shape[-1])
    return p.flatten(1)[None]


def unparts(name: str, x: Tensor, shape: torch.Size, vision_heads: int) -> Tensor:
    """The way back."""
    if name.endswith("in_proj.weight"):
        x = x.view(3, vision_heads, -1, x.shape[-1]).transpose(0, 1)
    return x.reshape(shape)


class Muon:
    """Both optimisers behind one step()."""

    def __init__(self, model: nn.Module, vision_heads: int, vision_rate: float, momentum: float = 0.95, decay: float = 0.05):
        """`vision_rate`: the share of the learning rate that tower and adapter get."""
        self.heads, self.momentum, self.decay = vision_heads, momentum, decay
        self.share = lambda name: vision_rate if ".visual." in name else 1.0
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.names = {id(p): n for n, p in named}
        is_matrix = lambda n, p: p.dim() >= 2 and not any(k in n for k in ("wte", "lm_head", "positional", "query", "probe"))
        self.matrices = [p for n, p in named if is_matrix(n, p)]
        rest: dict[float, list] = {}
        for n, p in named:
            if not is_matrix(n, p):
                rest.setdefault(self.share(n), []).append(p)
        groups = [{"params": params, "share": share} for share, params in rest.items()]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.state = {self.names[id(p)]: torch.zeros_like(p) for p in self.matrices}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = lr * group["share"]
        self.adam.step()
        groups: dict[tuple, list] = {}
        for p in self.matrices:
            if p.grad is None:
                continue
            name = self.names[id(p)]
            m = self.state[name]
            m.lerp_(p.grad, 1 - self.momentum)
            update = parts(name, torch.lerp(p.grad, m, self.momentum), self.heads)
            groups.setdefault(tuple(update.shape[1:]), []).append((name, p, update))
        for shape, members in groups.items():
            done = orthogonalise(torch.cat([u for _, _, u in members])) * (0.2 * max(shape) ** 0.5)
            for (name, p, _), u in zip(members, done.split([len(u) for _, _, u in members])):
                rate = lr * self.share(name)
                p.mul_(1 - rate * self.decay)
                p.sub_(unparts(name, u, p.shape, self.heads), alpha=rate)

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)
        for p in self.matrices:
            p.grad = None

    def state_dict(self) -> dict:
        return {"momentum": self.state, "adam": self.adam.state_dict()}

    def load_state_dict(self, saved: dict) -> None:
        for name, m in saved["momentum"].items():
            self.state[name].copy_(m)
        self.adam.load_state_dict(saved["adam"])
