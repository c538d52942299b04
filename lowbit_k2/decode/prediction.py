"""What transducer searches need of a model, and the two steps that all of them take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class PredictionNetwork(Protocol):
    """Tokens so far to a vector; see `lowbit_k2.models.prediction`.

    Attributes:
      context_size: tokens that it sees; None: all of them.
    """

    context_size: int | None

    def initial_state(self, n: int, device: str | torch.device) -> Tensor:
        """Before the blank that starts every sequence, (N, ...)."""

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(M,) tokens, (M, ...) -> (M, D) for the position behind them, and the states there."""


class TransducerParts(Protocol):
    """What transducer search needs of a model."""

    decoder: PredictionNetwork
    joiner: Callable[..., Tensor]


def begin(model: TransducerParts, n: int, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """The joiner's second input before any token, (N, D), and the states there."""
    return advance(model, torch.zeros(n, dtype=torch.int64, device=device), model.decoder.initial_state(n, device))


def advance(model: TransducerParts, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same behind one more token of each of M sequences: (M,), (M, ...) -> (M, D), (M, ...)."""
    out, state = model.decoder.step(tokens, state)
    return model.joiner.decoder_proj(out), state
