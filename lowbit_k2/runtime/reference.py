"""Products of packed weights in numpy: what the library computes, slowly. Its fallback, and what it is tested against.

Integers are multiplied in float64, where they are exact; so the modes differ from the library's by float32's rounding
of the result alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lowbit_k2.core.encodings import ENCODINGS
from lowbit_k2.core.grids import BLOCK, matrix_shape
from lowbit_k2.packed.bitpack import unpack
from lowbit_k2.packed.tensors import PackedTensor

TOPS = {"a16": 127 * 256 + 127, "a8": 127}  # two signed bytes, one signed byte
TABLE_STEPS = 128  # of a grid that tables may lie on
SMALLEST_NORMAL = np.float32(1.17549435e-38)
SMALLEST_MODEL_STEP = np.float32(1e-30)  # quant/inputs.py
ROWS_AT_ONCE = 256  # of weights that are unpacked


def reference_matmul(tensor: PackedTensor, x: np.ndarray, mode: str, bias: np.ndarray | None = None) -> np.ndarray:
    """x (M, K) float32 times the tensor as a matrix (N, K), transposed: (M, N) float32.

    Args:
      mode: "exact", "a16" or "a8"; tensors of floats are always multiplied exactly.
      bias: (N,), added.
    """
    rows = matrix_shape(tensor.shape)[0]
    if mode == "exact" or tensor.is_float:
        scale, left = None, x if not tensor.input_bits else np.multiply(*quantize_rows(x, tensor))
    else:
        left, scale = quantize_rows(x, tensor, TOPS[mode])
        left = left.astype(np.float64)
        if tensor.table is not None:
            tensor = replace(tensor, table=rounded_table(tensor.table))
    y = np.empty((len(x), rows), np.float32)
    for begin in range(0, rows, ROWS_AT_ONCE):
        weights = dequantized_rows(tensor, begin, min(begin + ROWS_AT_ONCE, rows)).astype(left.dtype)
        product = left @ weights.T
        y[:, begin : begin + ROWS_AT_ONCE] = product if scale is None else product * scale
    return y if bias is None else y + bias


def rounded_table(table: np.ndarray) -> np.ndarray:
    """A table as it is multiplied by integers, float32.

    As it is, where it is so many steps of a grid: at most 128 to the largest entry, but for float32's rounding of twice
    2^-24. Else at 16 bits.
    """
    table = table.astype(np.float64)
    largest = np.abs(table).max()
    units = largest / np.arange(1, TABLE_STEPS + 1)[:, None]
    off = np.abs(table - np.rint(table / np.maximum(units, SMALLEST_NORMAL)) * units)  # (TABLE_STEPS, entries)
    if (off <= 1.5 * 2.0**-23 * np.abs(table)).all(axis=1).any():
        return table.astype(np.float32)
    unit = max(largest / TOPS["a16"], SMALLEST_NORMAL)
    return (np.rint(table / unit) * unit).astype(np.float32)


def quantize_rows(x: np.ndarray, tensor: PackedTensor, top: int = 1 << 22) -> tuple[np.ndarray, np.ndarray]:
    """Integers (M, K), as float32, and steps (M, 1) of rows on a grid of -top .. top, or the tensor's coarser one.

    A row with a number that is not finite has zeros, and a step of NaN.
    """
    low = SMALLEST_NORMAL
    if tensor.input_bits:
        top, low = min(top, 2 ** (tensor.input_bits - 1) - 1), SMALLEST_MODEL_STEP
    largest = np.abs(x).max(axis=1, keepdims=True)  # (M, 1)
    finite = np.isfinite(largest)
    step = np.maximum(np.where(finite, largest, 1) / np.float32(top), low).astype(np.float32)
    codes = np.rint(np.where(finite, x, 0) / step)
    return codes, np.where(finite, step, np.float32(np.nan))


def dequantized_rows(tensor: PackedTensor, begin: int, end: int) -> np.ndarray:
    """Rows of the tensor as a matrix, unpacked: (end - begin, K) float32."""
    cols = matrix_shape(tensor.shape)[1]
    if tensor.is_float:
        return tensor.values[begin:end].reshape(-1, cols).astype(np.float32)
    codes = unpack(tensor.data[begin:end], tensor.encoding, cols)
    if ENCODINGS[tensor.encoding].is_index:
        numbers = tensor.table[codes]
    else:
        numbers = codes.astype(np.float32) - np.float32(tensor.zero_point)
    if tensor.granularity == "tensor":
        return numbers * tensor.step
    step = tensor.step[begin:end]
    return numbers * (step[:, None] if step.ndim == 1 else np.repeat(step, BLOCK, axis=1)[:, :cols])
