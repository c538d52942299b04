"""Weights that come to their grids in the course of training: rivals of quantizing them outright from the first update.

    blend   x = (1 - h) w + h Q(w)
    parq    x = the piecewise-affine map that has slope 1 / (1 - h) half-way between neighbouring values of the grid, is
            flat around these, and ends at the outermost ones (PARQ, arXiv 2503.15748)

h rises from 0, where the weights are float (but for the ends of the grid in `parq`), to 1, where both are Q(w). The
gradient goes straight through to w; alpha gets h times its own in `blend`, its own in `parq`. In eval mode weights are
always Q(w).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_k2.core.grids import max_code

RELAXATIONS = ("none", "blend", "parq")


def relax(kind: str, hardness: float, weight: Tensor, quantized: Tensor, step: Tensor | None, bits: int) -> Tensor:
    """Weights between float and their grid.

    Args:
      kind: "blend" or "parq".
      hardness: h, 0 to 1.
      weight: latent.
      quantized: Q(weight), with the gradients of fake_quant.py.
      step: of the grid, broadcast against `weight`; `blend` does not look at it.
      bits: 1 to 8.
    """
    assert kind in ("blend", "parq") and 0.0 <= hardness <= 1.0, (kind, hardness)
    if hardness == 1.0:
        return quantized
    if kind == "blend":
        return torch.lerp(weight, quantized, hardness)
    with torch.no_grad():
        moved = piecewise_affine(weight / step, 1.0 - hardness, bits) * step - quantized
    return quantized + moved


def piecewise_affine(x: Tensor, softness: float, bits: int) -> Tensor:
    """PARQ's map of weights in steps; `softness` is the inverse of the slope between values, over 0."""
    if bits == 1:
        return (x / softness).clamp(-1.0, 1.0)
    top = max_code(bits)
    x = x.clamp(-top, top)
    middle = x.floor() + 0.5
    return torch.minimum(torch.maximum(middle + (x - middle) / softness, middle - 0.5), middle + 0.5)
