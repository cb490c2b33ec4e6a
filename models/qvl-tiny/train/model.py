"""Qwen-VL for training: batched, with parameters named as in the published checkpoints, in plain PyTorch.

`models/reference/qwen_vl.py` computes the same for one sequence at a time; `export.py` compares the two. Sequences here
are shorter than `seq_length`, so dynamic NTK and logn attention, which begin there, have no place.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reference"))
from checkpoint import sincos_2d  # noqa: E402
from qwen_vl import ADAPTER_HEAD_DIM, VISION_EPS, resize_positions  # noqa: E402


@dataclass(frozen=True)
class Dims:
    """What shapes the model. `n_ff` is each half of config.json's `intermediate_size`."""

    n_ranks: int = 720
    n_rows: int = 960
    hidden: int = 256
    heads: int = 4
    layers: int = 4
    n_ff: int = 768
    width: int = 192
    vision_heads: int = 4
    vision_layers: int = 6
    vision_ff: int = 768
    image_size: int = 168
    patch: int = 14
    n_queries: int = 64
    rope_base: float = 10000.0

    @property
    def n_patches(self) -> int:
        return (self.image_size // self.patch) ** 2


class Linear(nn.Linear):
    """A linear layer with small normal weights and zero bias."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True, gain: float = 1.0):
        super().__init__(n_in, n_out, bias)
        nn.init.normal_(self.weight, std=gain / math.sqrt(n_in))
        if bias:
            nn.init.zeros_(self.bias)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v. On CPUs torch's fused kernel takes three times as long at these sizes."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return torch.softmax(scores, -1).to(v.dtype) @ v


def norm(n: int) -> nn.LayerNorm:
    return nn.LayerNorm(n, eps=VISION_EPS)


class VisionAttention(nn.Module):
    """Rows of `in_proj` are [head][q | k | v][d]."""

    def __init__(self, d: Dims):
        super().__init__()
        self.heads = d.vision_heads
        self.in_proj = Linear(d.width, 3 * d.width)
        self.out_proj = Linear(d.width, d.width, gain=0.3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        qkv = self.in_proj(x).view(b, n, self.heads, 3, w // self.heads).permute(3, 0, 2, 1, 4)
        out = attend(*qkv.unbind(0))
        return self.out_proj(out.transpose(1, 2).reshape(b, n, w))


class VisionMlp(nn.Module):
    def __init__(self, d: Dims):
        super().__init__()
        self.c_fc = Linear(d.width, d.vision_ff)
        self.c_proj = Linear(d.vision_ff, d.width, gain=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class VisionBlock(nn.Module):
    def __init__(self, d: Dims):
        super().__init__()
        self.ln_1, self.attn = norm(d.width), VisionAttention(d)
        self.ln_2, self.mlp = norm(d.width), VisionMlp(d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    def __init__(self, d: Dims):
        super().__init__()
        self.resblocks = nn.ModuleList(VisionBlock(d) for _ in range(d.vision_layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class PoolAttention(nn.Module):
    """torch's MultiheadAttention by its parameter names."""

    def __init__(self, n: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * n, n).normal_(std=1 / math.sqrt(n)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * n))
        self.out_proj = Linear(n, n)
        # A query begins by looking around its own place: q and k see the positions alike, and every head sees both
        # axes (the table holds x in its first half, y in its second).
        shuffled = torch.randperm(n)
        look = torch.zeros(n, n)
        look[torch.arange(n), shuffled] = 2.0
        with torch.no_grad():
            self.in_proj_weight[:n] = look + 0.1 * self.in_proj_weight[:n]
            self.in_proj_weight[n : 2 * n] = look + 0.1 * self.in_proj_weight[n : 2 * n]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (wq, wk, wv), (bq, bk, bv) = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        heads = q.shape[-1] // ADAPTER_HEAD_DIM
        split = lambda t: t.view(t.shape[0], t.shape[1], heads, ADAPTER_HEAD_DIM).transpose(1, 2)
        q, k, v = split(F.linear(q, wq, bq)), split(F.linear(k, wk, bk)), split(F.linear(v, wv, bv))
        out = attend(q, k, v).transpose(1, 2)
        return self.out_proj(out.reshape(out.shape[0], out.shape[1], -1))


class AttentionPool(nn.Module):
    """The position-aware adapter: one cross-attention from learned queries to the patches."""

    def __init__(self, d: Dims):
        super().__init__()
        self.n_patches = d.n_patches
        self.query = nn.Parameter(torch.empty(d.n_queries, d.hidden).normal_(std=0.02))
        side = math.isqrt(d.n_queries)
        self.pos_embed = nn.Parameter(torch.from_numpy(sincos_2d(d.hidden, side)), requires_grad=False)
        self.kv_proj = Linear(d.width, d.hidden, bias=False)
        self.ln_q, self.ln_kv = norm(d.hidden), norm(d.hidden)
        nn.init.constant_(self.ln_q.weight, 0.1)
        self.attn = PoolAttention(d.hidden)

    def forward(self, x: Tensor) -> Tensor:
        kv = self.ln_kv(self.kv_proj(x))
        q = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
        return self.attn(q, kv + resize_positions(self.pos_embed, self.n_patches), kv)


class Vision(nn.Module):
    """Pixels (b, 3, s, s) -> patches after the last block (b, n_patches, width) and embeddings (b, n_queries, hidden)."""

    def __init__(self, d: Dims):
        super().__init__()
        self.d = d
        self.conv1 = nn.Conv2d(3, d.width, d.patch, d.patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(256, d.width).normal_(std=0.1))
        self.ln_pre = norm(d.width)
        self.transformer = VisionTransformer(d)
        self.attn_pool = AttentionPool(d)
        self.ln_post = norm(d.hidden)
        self.proj = nn.Parameter(torch.empty(d.hidden, d.hidden).normal_(std=1 / math.sqrt(d.hidden)))

    def patches(self, pixels: Tensor) -> Tensor:
        b, p = len(pixels), self.d.patch
        side = self.d.image_size // p
        x = pixels.view(b, 3, side, p, side, p).permute(0, 2, 4, 1, 3, 5).reshape(b, side * side, -1)
        x = F.linear(x, self.conv1.weight.flatten(1))
        return self.transformer(self.ln_pre(x + resize_positions(self.positional_embedding, self.d.n_patches)))

    def pool(self, x: Tensor) -> Tensor:
        return self.ln_post(self.attn_pool(x)) @ self.proj


class Rms(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


class TextAttention(nn.Module):
    def __init__(self, d: Dims):
        super().__init__()
        self.heads = d.heads
        self.c_attn = Linear(d.hidden, 3 * d.hidden)
        self.c_proj = Linear(d.hidden, d.hidden, bias=False, gain=0.3)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        b, n, h = x.shape
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.c_attn(x).chunk(3, -1))
        half = q.shape[-1] // 2
        rotate = lambda t: (t * cos + torch.cat([-t[..., half:], t[..., :half]], -1) * sin).to(v.dtype)
        out = attend(rotate(q), rotate(k), v, bias)
        return self.c_proj(out.transpose(1, 2).reshape(b, n, h))


class TextMlp(nn.Module):
    def __init__(self, d: Dims):
        super().__init__()
        self.w1, self.w2 = Linear(d.hidden, d.n_ff, bias=False), Linear(d.hidden, d.n_ff, bias=False)
        self.c_proj = Linear(d.n_ff, d.hidden, bias=False, gain=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class TextBlock(nn.Module):
    def __init__(self, d: Dims):
        super().__init__()
        self.ln_1, self.attn = Rms(d.hidden), TextAttention(d)
        self.ln_2, self.mlp = Rms(d.hidden), TextMlp(d)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), cos, sin, bias)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, d: Dims):
        super().__init__()
        self.wte = nn.Embedding(d.n_rows, d.hidden)
        nn.init.normal_(self.wte.weight, std=0.7)
        self.visual = Vision(d)
        self.h = nn.ModuleList(TextBlock(d) for _ in range(d.layers))
        self.ln_f = Rms(d.hidden)


class QwenVL(nn.Module):
    """The whole model. Its state dict has the names and shapes of the published checkpoints."""

    def __init__(self, d: Dims):
        super().__init__()
        self.d = d
        self.transformer = Transformer(d)
        self.lm_head = Linear(d.hidden, d.n_rows, bias=False, gain=0.5)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (b, 1, n, d_head) of positions (b, n)."""
        dim = self.d.hidden // self.d.heads
        inv_freq = self.d.rope_base ** (-torch.arange(0, dim, 2).float() / dim)
        angle = positions[:, None, :, None].float() * inv_freq
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()

    def text(self, ids: Tensor, image_at: Tensor, rows: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (b, n, hidden) after the last norm.

        `image_at`: flat indices into b*n of the picture slots, in order of `rows` (n_slots, hidden). `mask`
        (b, 1, n, n): True where a query row may look.
        """
        x = self.transformer.wte(ids)
        x = x.flatten(0, 1).index_copy(0, image_at, rows.to(x.dtype)).view(x.shape)
        cos, sin = self.rotary(positions)
        bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
        for block in self.transformer.h:
            x = block(x, cos, sin, bias)
        return self.transformer.ln_f(x)
