"""Transformer language model: x + attention(norm(x)), x + feed_forward(norm(x)), each unit seeing those before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.core.lm import TransformerLmConfig
from lowbit_k2.models.dropout import dropout
from lowbit_k2.models.gelu import gelu
from lowbit_k2.models.lm import LanguageModel


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """(...,) -> (..., C), arXiv 1706.03762, section 3.5, sines before cosines."""
    rate = torch.exp(torch.arange(d_model // 2, device=positions.device) * (-math.log(10000.0) / (d_model // 2)))
    angle = positions[..., None] * rate  # (..., C / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention; every matrix is a sub-module that is called, so that each can be quantized."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, mask: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
          x: (N, T, C).
          mask: (N or 1, T, S + T), True where a unit may look.
          past: keys and values of the S units before, (N, 2, S, C); None: S is 0.

        Returns:
          (N, T, C), and all keys and values, (N, 2, S + T, C).
        """
        known = torch.stack([self.key(x), self.value(x)], dim=1)  # (N, 2, T, C)
        if past is not None:
            known = torch.cat([past.to(known.dtype), known], dim=2)  # (N, 2, S + T, C)
        query, key, value = map(self._heads, (self.query(x), *known.unbind(1)))  # (N, H, T or S + T, D)
        scores = query @ key.transpose(2, 3) * key.size(-1) ** -0.5  # (N, H, T, S + T)
        weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(dim=-1)
        context = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)  # (N, T, C)
        return self.out(context), known

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, H, T, D)


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, d_model: int, inner: int) -> None:
        super().__init__()
        self.inner = nn.Linear(d_model, inner)
        self.outer = nn.Linear(inner, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) -> (N, T, C)."""
        return self.outer(gelu(self.inner(x)))


class TransformerLayer(nn.Module):
    """Attention and a feed-forward module, each on a bypass with LayerNorm in front."""

    def __init__(self, config: TransformerLmConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm_attention = nn.LayerNorm(config.d_model)
        self.attention = CausalSelfAttention(config.d_model, config.num_heads)
        self.norm_feed_forward = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config.d_model, config.ffn_dim)

    def forward(self, x: Tensor, mask: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Arguments and results as those of `CausalSelfAttention`."""
        attended, known = self.attention(self.norm_attention(x), mask, past)
        x = x + dropout(attended, self.dropout, self.training)
        changed = self.feed_forward(self.norm_feed_forward(x))
        return x + dropout(changed, self.dropout, self.training), known


class TransformerLm(LanguageModel):
    """Embedding and sinusoids, layers, a last LayerNorm, and the output.

    It remembers the keys and values of all units before: (layers, 2, S, C).
    """

    def __init__(self, config: TransformerLmConfig, for_training: bool = True) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model)

    def hidden(self, tokens: Tensor) -> Tensor:
        t = tokens.size(1)
        mask = torch.ones(t, t, dtype=torch.bool, device=tokens.device).tril()[None]  # (1, T, T)
        x = self.embed(tokens) + sinusoids(torch.arange(t, device=tokens.device), self.config.d_model)  # (N, T, C)
        x = dropout(x, self.config.dropout, self.training)
        for layer in self.layers:
            x, _ = layer(x, mask)
        return self.norm(x)

    def first_state(self) -> Tensor:
        return self.embedding.weight.new_zeros(self.config.num_layers, 2, 0, self.config.d_model)

    def advance(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        lens = torch.tensor([state.size(2) for state in states], device=tokens.device)  # (M,)
        longest = int(lens.max())
        # shorter ones are padded in front, where the mask lets nobody look
        past = torch.stack([F.pad(s, (0, 0, longest - s.size(2), 0)) for s in states])  # (M, layers, 2, S, C)
        places = torch.arange(longest + 1, device=tokens.device)
        mask = (places >= longest - lens[:, None])[:, None]  # (M, 1, S + 1)
        x = (self.embed(tokens) + sinusoids(lens, self.config.d_model))[:, None]  # (M, 1, C)
        known = []
        for i, layer in enumerate(self.layers):
            x, own = layer(x, mask, past[:, i])
            known.append(own)
        after = torch.stack(known, dim=1)  # (M, layers, 2, S + 1, C)
        return self.norm(x)[:, 0], [s[:, :, longest - n :] for s, n in zip(after, lens.tolist(), strict=True)]
