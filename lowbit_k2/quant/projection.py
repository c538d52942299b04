"""The one function that sends weights to the codes of a grid, for training, export and statistics alike.

Which codes a precision has, and which weights share a step, is said in `core/grids.py`. Everything here is a pure
function of tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_k2.core.grids import BLOCK, matrix_shape, max_code


def project_(x: Tensor, bits: int) -> Tensor:
    """Replace `x` (weights divided by their steps) by its nearest codes, in place; returns `x`.

    Ties go to the even code, except at 1 bit, where x = 0 has no nearer code and becomes +1. Zero is always +0.0,
    never -0.0, so that float codes and the integers stored on disk give the same bits once multiplied by a step.
    """
    if bits == 1:
        # torch.sign(0) = 0; half a unit more and a second sign make it +1, cheaper than a comparison and a select.
        return x.sign_().add_(0.5).sign_()
    top = max_code(bits)
    return x.clamp_(-top, top).round_().add_(0.0)  # -0.0 + 0.0 = +0.0


def project(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """Codes of `weight`, as floats of its shape and type; `step` must broadcast against it (see `expand_steps`)."""
    return project_(weight / step, bits)


def expand_steps(step: Tensor, shape: torch.Size | tuple[int, ...], granularity: str) -> Tensor:
    """Make steps, one per group, broadcast against a weight of `shape`. Only block64 costs a full-size tensor."""
    if granularity == "tensor":
        return step  # ()
    rows = shape[0]
    if granularity == "channel":
        return step.view(rows, *(1,) * (len(shape) - 1))  # (rows, 1, ..)
    cols = matrix_shape(shape)[1]
    return step.repeat_interleave(BLOCK, dim=1)[:, :cols].reshape(shape)
