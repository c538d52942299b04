"""Which integers a precision has, and which weights share a step.

A weight of any shape is seen as rows: dimension 0 is the row (output channel), the rest is flattened to columns.
A *group* is the set of weights that share one step:

    tensor   one group                          steps of shape ()
    channel  one group per row                  steps of shape (rows,)
    block64  64 neighbouring columns of a row   steps of shape (rows, ceil(cols / 64)); the last may be shorter
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LOW_BITS = (1, 2, 3, 4, 5, 6, 7, 8)
HALF_BITS = 16  # rounded to fp16
FLOAT_BITS = 32  # left alone
PRECISIONS = (*LOW_BITS, HALF_BITS, FLOAT_BITS)

BLOCK = 64
GRANULARITIES = ("tensor", "channel", "block64")
ACTIVATION = "activation"  # role, in reports and files, of the grid that a module's input has


def max_code(bits: int) -> int:
    """Largest code Qp: 1 for {-1, 1} (1 bit) and {-1, 0, 1} (2 bits), else 2^(bits-1) - 1 for {-Qp .. Qp}."""
    assert bits in LOW_BITS, bits
    return 1 if bits <= 2 else 2 ** (bits - 1) - 1


def code_table(bits: int) -> list[int]:
    """All codes of a precision, ascending."""
    top = max_code(bits)
    return [-1, 1] if bits == 1 else list(range(-top, top + 1))


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) that a tensor of at least one dimension is quantized and packed as."""
    return shape[0], math.prod(shape[1:])


def group_shape(shape: Sequence[int], granularity: str) -> tuple[int, ...]:
    """Shape of the steps of a tensor of `shape`."""
    if granularity == "tensor":
        return ()
    rows, cols = matrix_shape(shape)
    if granularity == "channel":
        return (rows,)
    assert granularity == "block64", granularity
    return (rows, -(-cols // BLOCK))
