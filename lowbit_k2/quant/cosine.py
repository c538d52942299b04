"""Cosines that pull latent weights to their grid or table, and S8BQAT's hard snap (arXiv 2206.15408).

Between two neighbouring values of a tensor's grid, g apart with the middle m, a weight pays

    R(w) = g / pi |cos(pi (w - m) / g)|          0 on the values, the most half-way
    dR/dw = sgn(x) cos(pi x / g)                 x = w - nearest value

On an even grid that is the absolute cosine of linear QAT; on a table of k-means (Lloyd-Max) centroids, where g differs
from region to region, the multi-regional one of S8BQAT, which besides puts the weights on their centroids now and then.

Our source names lambda = 5e-4, the shape and the snaps. It is silent on how the cosines are added up, on their height
and on weights beyond the outermost values. Here lambda weighs their sum over all weights; the height g / pi makes the
pull on a weight at most lambda on fine and coarse grids alike; beyond the ends nothing pulls.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lowbit_k2.core.grids import LOW_BITS, max_code
from lowbit_k2.errors import UserError
from lowbit_k2.quant.codebook import CodebookQuantizer, cluster
from lowbit_k2.quant.projection import expand_steps
from lowbit_k2.quant.quantizer import WeightQuantizer
from lowbit_k2.quant.switching import Assignment, latent_weights, use_precision


class CosinePull:
    """The cosines of all tensors of a model that have 1 to 8 bits under an allocation; frozen ones are left out."""

    def __init__(self, model: nn.Module, assignment: Assignment) -> None:
        """
        Args:
          assignment: the precision of each tensor, as `use_precision` takes it.

        Raises:
          UserError: a precision that the model does not have, or no such tensor.
        """
        with use_precision(model, assignment):
            self.tensors = [
                (quantizer, weight, quantizer.active_bits)
                for quantizer, weight in latent_weights(model).items()
                if quantizer.active_bits in LOW_BITS and not quantizer.frozen
            ]
        if not self.tensors:
            raise UserError("no tensor has 1 to 8 bits: choose another precision or quantization")

    @torch.no_grad()
    def add_gradients(self, weight_of_sum: float) -> float:
        """Add lambda dR/dw to the gradients; returns lambda R, the term of the loss."""
        total = 0.0
        for quantizer, weight, bits in self.tensors:
            value, pull = cosine(quantizer, weight.detach(), bits)
            total += float(value)
            pull.mul_(weight_of_sum)
            weight.grad = pull if weight.grad is None else weight.grad.add_(pull)
        return weight_of_sum * total


class SnappedCodebooks(CosinePull):
    """The same on tables of k-means, which nobody learns by gradient: in train mode the model has the latents."""

    def __init__(self, model: nn.Module, assignment: Assignment) -> None:
        """
        Raises:
          UserError: as `CosinePull`, or a tensor of 1 to 8 bits has no codebook.
        """
        super().__init__(model, assignment)
        for quantizer, _, _ in self.tensors:
            if not isinstance(quantizer, CodebookQuantizer):
                raise UserError(f"{quantizer.name}: hard snaps need a table: give its role the quantizer codebook")
            quantizer.float_in_training = True

    @torch.no_grad()
    def fit(self) -> None:
        """Tables anew: the centroids of the present weights."""
        for quantizer, weight, bits in self.tensors:
            quantizer.tables[str(bits)].copy_(cluster(weight, 2**bits))

    @torch.no_grad()
    def snap(self) -> None:
        """The weights become the nearest entries of their tables."""
        for quantizer, weight, bits in self.tensors:
            weight.copy_(quantizer.table(bits)[quantizer.codes(weight, bits).long()])


def cosine(quantizer: WeightQuantizer, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """R of a tensor, shape (), float64, and dR/dw, in the shape and type of `weight`."""
    table = quantizer.table(bits)
    if table is not None:
        return cosine_of_table(weight, table)
    step = expand_steps(quantizer.step(weight, bits), weight.shape, quantizer.scheme.granularity)
    offset, gap = weight / step - quantizer.codes(weight, bits), 2.0 if bits == 1 else 1.0
    offset.masked_fill_((weight / step).abs() > max_code(bits), 0.0)
    return _cosine(offset, torch.full_like(offset, gap), step)


def cosine_of_table(weight: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a table (K,) in any order."""
    table = table.sort().values
    place = torch.searchsorted(table, weight).clamp_(1, len(table) - 1)
    below, above = table[place - 1], table[place]
    offset = torch.where(weight - below <= above - weight, weight - below, weight - above)
    offset.masked_fill_((weight < table[0]) | (weight > table[-1]), 0.0)
    return _cosine(offset, (above - below).clamp_(min=torch.finfo(weight.dtype).tiny), torch.ones_like(table[0]))


def _cosine(offset: Tensor, gap: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """R and dR/dw from signed distances to the nearest values and the gaps between these, both in `unit`."""
    angle = offset / gap * math.pi
    value = (gap * unit / math.pi * angle.abs().sin()).double().sum()
    return value, angle.cos().mul_(offset.sign())
