"""Factors held semi-orthogonal, with a scale of their own (Povey et al. 2018, section 2, "floating" case).

    P = M M^T,   alpha^2 = tr(P P^T) / tr(P),   M <- M - 4 nu / alpha^2 (P - alpha^2 I) M       nu = 1/8

which is a step of Newton's kind towards M M^T = alpha^2 I, for M with no more rows than columns. The step is halved
where M is far from it (tr(P P^T) rows / tr(P)^2, which is 1 at the end, over 1.02), and once more over 1.1, for
stability, as in Kaldi.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

SPEED, EVERY = 0.125, 4  # nu, and updates between two steps
FAR, VERY_FAR = 1.02, 1.1


@torch.no_grad()
def step_towards_orthogonal(matrix: Tensor) -> float:
    """One step, in place, on (rows, columns), rows <= columns.

    Returns:
      tr(P P^T) rows / tr(P)^2 before it: 1 for a multiple of a semi-orthogonal matrix, more otherwise.
    """
    rows, columns = matrix.shape
    assert rows <= columns, (rows, columns)
    product = matrix @ matrix.t()  # (rows, rows)
    trace, square = product.diagonal().sum(), product.square().sum()
    ratio = float(square * rows / trace.square())
    speed = SPEED * (0.5 if ratio > FAR else 1.0) * (0.5 if ratio > VERY_FAR else 1.0)
    scale = square / trace
    product.diagonal().sub_(scale)
    matrix.addmm_(product, matrix.clone(), alpha=float(-4.0 * speed / scale))
    return ratio


def factors_of(model: nn.Module) -> list[nn.Parameter]:
    """The latent weights of all linear maps called `factor`."""
    found = []
    for name, parameter in model.named_parameters():
        parts = name.replace(".parametrizations.weight.original", ".weight").split(".")
        if parts[-2:] == ["factor", "weight"] and parameter.requires_grad:
            found.append(parameter)
    return found


def semi_orthogonal(model: nn.Module) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """A hook behind updates of this model that makes a step every `EVERY` of them; nothing for models without factors.

    Returns:
      A function whose result is `orthogonality`, the largest of the ratios before the step, 1 at best.
    """
    factors: Sequence[nn.Parameter] = factors_of(model)

    def hook(model: nn.Module, update: int) -> Mapping[str, float]:
        if not factors or update % EVERY:
            return {}
        return {"orthogonality": max(step_towards_orthogonal(factor.data) for factor in factors)}

    return hook
