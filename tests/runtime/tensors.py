"""Random packed tensors, and their products in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit_k2.core.encodings import ENCODINGS
from lowbit_k2.core.grids import group_shape
from lowbit_k2.packed import PackedTensor

CODES = [name for name, encoding in ENCODINGS.items() if not encoding.is_float]
LINEAR = [name for name in CODES if not ENCODINGS[name].is_index]


def random_tensor(
    encoding: str, rows: int, cols: int, granularity: str = "tensor", seed: int = 0, **notes: Any
) -> PackedTensor:
    rng = np.random.default_rng(seed)
    kind = ENCODINGS[encoding]
    low, high = kind.codes
    codes = rng.integers(low, high + 1, (rows, cols)).astype(np.uint8 if kind.is_index else np.int8)
    if encoding == "binary":
        codes[codes == 0] = 1
    step = rng.uniform(0.5, 2.0, group_shape((rows, cols), granularity)).astype(np.float32)
    table = rng.normal(size=high + 1) if kind.is_index else None
    return PackedTensor.from_codes("w", "linear", encoding, codes, step, granularity, table, **notes)


def random_rows(rows: int, cols: int, seed: int = 1) -> np.ndarray:
    """Rows of very different sizes, float32."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, cols)) * 10.0 ** rng.integers(-3, 4, (rows, 1))).astype(np.float32)


def product(tensor: PackedTensor, x: np.ndarray) -> np.ndarray:
    """(M, N) in float64, of the weights as they are in float32."""
    return x.astype(np.float64) @ tensor.dequantize().reshape(tensor.shape[0], -1).astype(np.float64).T


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest error of any row, as a part of the row's largest value."""
    if not found.size:
        return 0.0
    largest = np.abs(expected).max(axis=-1) + 1e-300
    return float((np.abs(found - expected).max(axis=-1) / largest).max())
