"""All architectures in one model: the widest, of which a narrower one uses the leading units.

Candidate i of layer l uses the leading n_i rows of the matrix that makes its units, and the leading n_i columns of the
one that reads them. That is the widest layer with its units multiplied by m_j = 1 for j < n_i, else 0, and a mixture
of candidates the same with

    m_j = sum_i lambda_i 1[j < n_i]                                                                (0 <= j < max n_i)

for one product per unit, where arXiv 2206.11643 has h_l = sum_i lambda_i phi_i(W_i h_{l-1}), a pass through the layer
for each of the candidates (eight, there). How the two differ:

 - with one candidate alone (lambda one-hot) they are equal: all that the supernet is trained on, all that comes out;
 - in a Conformer's feed-forward module they are equal for any lambda: the units are behind the swish, and linear is
   all that follows;
 - in a TDNN-F the mixture here stands before the ReLU and the BatchNorm, the paper's behind them. With lambda near a
   corner, where the annealing leads it, the difference goes away; a gradient for lambda exists in both.

The weights of narrow candidates are those of the widest, quantizers included: a statistic is that of the whole matrix.
Of the factors of a TDNN-F the whole is held semi-orthogonal (`lowbit_k2.train.orthogonal`), which holds every leading
part so: M M^T = a^2 I says the same of any of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowbit_k2.losses.output import Criterion, PassOutput, TrainingBatch
from lowbit_k2.models.masking import MaskedBatchNorm
from lowbit_k2.quant import generator_seed
from lowbit_k2.search.space import SearchSpace, searchable


class Supernet:
    """Forward hooks on a model of the widest layers; its parameters and their names stay what they are."""

    def __init__(self, model: nn.Module, space: SearchSpace) -> None:
        """
        Args:
          model: with `encoder.layers`, every one as wide as the last candidate; quantized or not.
        """
        self.space = space
        widths = torch.tensor(space.candidates)
        device = next(model.parameters()).device
        self.leading = (torch.arange(space.candidates[-1])[None] < widths[:, None]).float().to(device)  # (K, B)
        self.mask: Tensor | None = None  # (L, B); None: all units
        where = searchable(space.kind)
        for number, layer in enumerate(model.encoder.layers):
            for name in where.outputs:
                layer.get_submodule(name).register_forward_hook(self._after(number))
            for name in where.inputs:
                layer.get_submodule(name).register_forward_pre_hook(self._before(number))

    def mix(self, weights: Tensor) -> None:
        """From now on passes are those of the mixture with `weights` lambda (L, K)."""
        self.mask = weights.to(self.leading) @ self.leading

    def choose(self, choice: Sequence[int]) -> None:
        """From now on passes are those of one architecture."""
        self.mask = self.leading[list(choice)]

    def open(self) -> None:
        """From now on passes are those of the widest architecture."""
        self.mask = None

    def _after(self, number: int) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return self._masked(output, number)

        return hook

    def _before(self, number: int) -> Callable[..., tuple[Tensor]]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            return (self._masked(inputs[0], number),)

        return hook

    def _masked(self, x: Tensor, number: int) -> Tensor:
        """x (..., B)."""
        return x if self.mask is None else x * self.mask[number].to(x.dtype)


def draw_choice(space: SearchSpace, seed: int, update: int) -> list[int]:
    """The architecture of an update, every one as likely; equal on all ranks and after a resume."""
    generator = torch.Generator().manual_seed(generator_seed("architecture", seed, update))
    return torch.randint(len(space.candidates), (space.num_layers,), generator=generator).tolist()


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorms of a model in eval mode go by the batch: their running statistics are those of all architectures."""
    norms = [module for module in model.modules() if isinstance(module, MaskedBatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 0.0  # which leaves no trace
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum


class SampledCriterion:
    """A criterion whose passes are those of the architecture drawn for the update; in eval mode, of the widest."""

    def __init__(self, criterion: Criterion, supernet: Supernet, seed: int) -> None:
        self.criterion, self.supernet, self.seed = criterion, supernet, seed

    def __call__(self, model: nn.Module, batch: TrainingBatch, update: int, shared: Any = None) -> PassOutput:
        """See `lowbit_k2.losses.output.Criterion`."""
        if model.training:
            self.supernet.choose(draw_choice(self.supernet.space, self.seed, update))
            return self.criterion(model, batch, update, shared)
        self.supernet.open()
        with batch_statistics(model):
            return self.criterion(model, batch, update, shared)
