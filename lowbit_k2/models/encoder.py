"""What models, losses and searches expect of an encoder."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from lowbit_k2.core.config import load_named
from lowbit_k2.core.encoders import EncoderConfig


class Encoder(Protocol):
    """A module of inputs to frames; lengths out for lengths in are its settings' `output_lens`.

    One that can go through audio as it comes in has `stream(inputs, state) -> (encoder_out, state)` as well (lstm.py).
    """

    config: EncoderConfig

    def __call__(self, inputs: Tensor, input_lens: Tensor) -> tuple[Tensor, Tensor]:
        """inputs (N, T, F), input_lens (N,) -> (encoder_out (N, T', C), encoder_out_lens (N,))."""
        ...


def make_encoder(config: EncoderConfig) -> nn.Module:
    """The encoder of a configuration, freshly initialised."""
    return load_named(config.build)(config)
