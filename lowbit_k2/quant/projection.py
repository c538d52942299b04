"""The grid of codes: which integers a precision has, and the one function that sends weights to them.

Training, export and the statistics all call `project`, so a code can never differ between them. Everything here is
a pure function of tensors.

A weight of any shape is seen as rows: dimension 0 is the row (output channel), the rest is flattened to columns.
A *group* is the set of weights that share one step:

    tensor   one group                          steps of shape ()
    channel  one group per row                  steps of shape (rows,)
    block64  64 neighbouring columns of a row   steps of shape (rows, ceil(cols / 64)); the last may be shorter
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW_BITS = (1, 2, 3, 4, 5, 6, 7, 8)
HALF_BITS = 16  # rounded to fp16
FLOAT_BITS = 32  # left alone
PRECISIONS = (*LOW_BITS, HALF_BITS, FLOAT_BITS)

BLOCK = 64
GRANULARITIES = ("tensor", "channel", "block64")


def max_code(bits: int) -> int:
    """Largest code Qp: 1 for {-1, 1} (1 bit) and {-1, 0, 1} (2 bits), else 2^(bits-1) - 1 for {-Qp .. Qp}."""
    assert bits in LOW_BITS, bits
    return 1 if bits <= 2 else 2 ** (bits - 1) - 1


def code_table(bits: int) -> list[int]:
    """All codes of a precision, ascending."""
    top = max_code(bits)
    return [-1, 1] if bits == 1 else list(range(-top, top + 1))


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
    """Codes of `weight`, as floats of its shape and type; `step` must broadcast against it (see `spread`)."""
    return project_(weight / step, bits)


def group_shape(shape: torch.Size | tuple[int, ...], granularity: str) -> tuple[int, ...]:
    """Shape of the steps of a weight of `shape`."""
    if granularity == "tensor":
        return ()
    rows = shape[0]
    if granularity == "channel":
        return (rows,)
    assert granularity == "block64", granularity
    cols = torch.Size(shape).numel() // rows
    return (rows, -(-cols // BLOCK))


def spread(step: Tensor, shape: torch.Size | tuple[int, ...], granularity: str) -> Tensor:
    """Make steps, one per group, broadcast against a weight of `shape`. Only block64 costs a full-size tensor."""
    if granularity == "tensor":
        return step  # ()
    rows = shape[0]
    if granularity == "channel":
        return step.view(rows, *(1,) * (len(shape) - 1))  # (rows, 1, ..)
    cols = torch.Size(shape).numel() // rows
    return step.repeat_interleave(BLOCK, dim=1)[:, :cols].reshape(shape)
