"""Multi-head self-attention with relative positions (Transformer-XL, arXiv 1901.02860, section 3.3)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.models.dropout import dropout


def relative_positions(num_frames: int, d_model: int, like: Tensor) -> Tensor:
    """Sinusoids for the distances num_frames-1 .. -(num_frames-1), as (2 * num_frames - 1, d_model)."""
    distance = torch.arange(num_frames - 1, -num_frames, -1.0, device=like.device)
    rate = torch.exp(torch.arange(0, d_model, 2, device=like.device) * (-math.log(10000.0) / d_model))
    angle = distance[:, None] * rate  # (2T-1, d_model / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)  # (2T-1, d_model)


class _ShiftRelative(torch.autograd.Function):
    """A view forward; one zero-filled buffer backward, where slicing would fill and copy several."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        ctx.shape = scores.shape
        return _diagonals(scores.contiguous()).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        result = grad.new_zeros(ctx.shape)
        _diagonals(result).copy_(grad)
        return result


def _diagonals(scores: Tensor) -> Tensor:
    """View of contiguous scores (N, H, T, P) in which row i starts at column T-1-i: (N, H, T, T)."""
    n, h, t, p = scores.shape
    return scores.as_strided((n, h, t, t), (h * t * p, t * p, p - 1, 1), scores.storage_offset() + t - 1)


def shift_relative(scores: Tensor) -> Tensor:
    """Turn scores over distances (N, H, T, 2T-1) into scores over keys (N, H, T, T): row i starts at T-1-i."""
    return _shift_by_reshaping(scores) if torch.jit.is_tracing() else _ShiftRelative.apply(scores)


def _shift_by_reshaping(scores: Tensor) -> Tensor:
    """The same with plain operations, for traced and exported models of any T: strides would be constants there.

    A column in front makes rows of 2T. Read as rows of T without the first of these, and again as rows of 2T-1, each
    row starts one place before the one above.
    """
    n, h, t, p = scores.shape
    rows = F.pad(scores, (1, 0)).view(n, h, p + 1, t)[:, :, 1:]  # (N, H, 2T-1, T)
    return rows.reshape(n, h, t, p)[..., :t]  # (N, H, T, T)


class RelativeSelfAttention(nn.Module):
    """score(i, j) = ((q_i + u) . k_j + (q_i + v) . p_{i-j}) / sqrt(d_head).

    Every matrix is a sub-module that is called, so that each of them can be quantized.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        assert d_model % num_heads == 0, (d_model, num_heads)
        self.num_heads = num_heads
        self.d_head = d_model // num_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)
        self.pos = nn.Linear(d_model, d_model, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(num_heads, self.d_head))
        self.pos_bias_v = nn.Parameter(torch.empty(num_heads, self.d_head))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)
        self.dropout = dropout

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """x (N, T, C); positions (2T-1, C) from `relative_positions`; mask (N, T), True on valid frames."""
        n, t, c = x.shape
        query = self.query(x).view(n, t, self.num_heads, self.d_head)  # (N, T, H, D)
        key = self._heads(self.key(x))  # (N, H, T, D)
        value = self._heads(self.value(x))  # (N, H, T, D)
        pos = self.pos(positions).view(1, -1, self.num_heads, self.d_head).transpose(1, 2)  # (1, H, 2T-1, D)

        scale = self.d_head**-0.5
        by_content = ((query + self.pos_bias_u) * scale).transpose(1, 2) @ key.transpose(2, 3)  # (N, H, T, T)
        by_position = ((query + self.pos_bias_v) * scale).transpose(1, 2) @ pos.transpose(2, 3)  # (N, H, T, 2T-1)
        scores = by_content + shift_relative(by_position)  # (N, H, T, T)
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        weights = dropout(scores.softmax(dim=-1), self.dropout, self.training)
        context = (weights @ value).transpose(1, 2).reshape(n, t, c)  # (N, T, C)
        return self.out(context)

    def _heads(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        return x.view(n, t, self.num_heads, self.d_head).transpose(1, 2)  # (N, H, T, D)
