"""LHUC, learning hidden unit contributions: what adapts to a speaker are the amplitudes of the hidden units.

    h_l  ->  2 sigmoid(r_l) * h_l

for hidden layer l, its units h_l behind their nonlinearity, and one vector r_l per speaker (Swietojanski and Renals,
"Learning hidden unit contributions for unsupervised speaker adaptation of neural network acoustic models", 2014). r = 0
changes nothing, to the last bit. The vectors are no part of the model: they act through forward hooks, for the length
of a context. An encoder has LHUC by a method

    def hidden_layers(self) -> list[HiddenLayer]

that names the modules whose outputs are hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HiddenLayer = tuple[nn.Module, int]  # a module that puts out hidden units, (N, T, C), and C


def hidden_layers(model: nn.Module) -> list[HiddenLayer]:
    """Those of a model's encoder, from the input on; none where the encoder does not name them."""
    named = getattr(getattr(model, "encoder", model), "hidden_layers", None)
    return named() if named is not None else []


@contextmanager
def scaled_units(model: nn.Module, vectors: Sequence[Tensor]) -> Iterator[None]:
    """Run the body with the hidden units of utterance n scaled by 2 sigmoid(r[n]).

    Args:
      vectors: r of each of `hidden_layers`, (N, C), for the N utterances of the batches that the body runs. The
        gradient passes through to them.
    """
    with ExitStack() as stack:
        for (module, _), r in zip(hidden_layers(model), vectors, strict=True):
            stack.callback(module.register_forward_hook(_scale(2.0 * torch.sigmoid(r)[:, None, :])).remove)
        yield


def _scale(factor: Tensor) -> Callable[..., Tensor]:
    """A forward hook that multiplies by `factor` (N, 1, C)."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        assert len(output) == len(factor), (output.shape, factor.shape)  # or one row would serve all
        return output * factor

    return hook


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Run the body with no gradient taken of the model's parameters: that of a quantized weight costs much."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


class SpeakerVectors:
    """r of every speaker and hidden layer, zero at first.

    Attributes:
      rows: the speaker's number by utterance.
      layers: (S, C) of each hidden layer, a row per speaker.
    """

    def __init__(self, model: nn.Module, rows: Mapping[str, int], device: str | torch.device = "cpu") -> None:
        self.model, self.rows = model, rows
        speakers = max(rows.values(), default=-1) + 1
        self.layers = [torch.zeros(speakers, size, device=device) for _, size in hidden_layers(model)]

    def of(self, utterances: Sequence[str]) -> list[Tensor]:
        """Copies for the utterances of a batch, (N, C) of each hidden layer."""
        rows = [self.rows[utterance] for utterance in utterances]
        return [r[rows] for r in self.layers]

    def adapted(self, utterances: Sequence[str]) -> AbstractContextManager:
        """Context in which the model is their speakers'; the batch must hold just these, in this order."""
        return scaled_units(self.model, self.of(utterances))

    def descend(self, utterances: Sequence[str], steps: Sequence[Tensor]) -> None:
        """r -= step, (N, C) of each hidden layer, for utterances of N different speakers."""
        rows = [self.rows[utterance] for utterance in utterances]
        assert len(set(rows)) == len(rows), "two utterances of a speaker"  # of whose steps one would be lost
        for r, step in zip(self.layers, steps, strict=True):
            r[rows] -= step
