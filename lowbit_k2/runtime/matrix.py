"""Packed weights times float32 activations."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np

from lowbit_k2.core.grids import matrix_shape
from lowbit_k2.errors import UserError
from lowbit_k2.packed import PackedFileError, PackedTensor
from lowbit_k2.runtime.layers import swish
from lowbit_k2.runtime.native import ACTIVATIONS, GRANULARITY, MODES, Tensor, check, library, pointer
from lowbit_k2.runtime.reference import reference_matmul

DEFAULT_MODE = "a16"


class PackedMatrix:
    """A tensor of a packed file, ready to be multiplied: dimension 0 are outputs, the others together inputs.

    The library keeps the weights in 1, 2, 4 or 8 bits each (ternary 2, 3 bits 4, 5 to 7 bits 8; with a table as many as
    the file has; floats in theirs), in a layout of its own; without the library the tensor is unpacked anew at each
    call, a few rows at a time.

    Attributes:
      shape: (outputs, inputs).
      nbytes: of memory, steps included.
      handle: the library's; None without it.
    """

    handle: int | None = None

    def __init__(self, tensor: PackedTensor) -> None:
        """Raises:
        PackedFileError: bytes that no writer makes, or numbers that are not finite.
        """
        self.shape = matrix_shape(tensor.shape)
        self.name = tensor.name
        self._library = library()
        if self._library is None:
            if not tensor.is_float:
                tensor.codes  # noqa: B018  raises where bytes are damaged
            self._tensor, self.nbytes = tensor, tensor.nbytes
            return
        self.handle = self._library.lbk_matrix_new(_describe(tensor))
        if not self.handle:
            raise PackedFileError(f"tensor {tensor.name}: {self._library.lbk_error().decode(errors='replace')}")
        self.nbytes = self._library.lbk_matrix_bytes(self.handle)
        weakref.finalize(self, self._library.lbk_matrix_free, self.handle)

    def matmul(
        self,
        x: np.ndarray,
        mode: str = DEFAULT_MODE,
        bias: np.ndarray | None = None,
        threads: int = 1,
        out: np.ndarray | None = None,
        add: bool = False,
    ) -> np.ndarray:
        """x (..., inputs) times the weights: (..., outputs), float32.

        Args:
          x: numbers of any float type, computed with in float32. Rows of a matrix may lie apart or overlap, as
            `as_strided` makes them.
          mode: "exact": x as it is; "a16", "a8": each row of x rounded to integers of 16 or 8 bits, with a step of its
            own, and tables to 16 bits, unless they lie on a grid of at most 128 steps to the largest entry. Tensors of
            floats are multiplied exactly in every mode. If the model quantizes the
            inputs of this tensor (`input_bits`), x is rounded as there; "a8" then adds no error up to 8 bits, "a16"
            none up to 15.
          bias: (outputs,), added.
          threads: that work at most; small products take fewer.
          out: float32 (..., outputs), contiguous and apart from x: where the result goes, which is also returned.
          add: to what `out` holds, without a bias.
        Raises:
          UserError: an unknown mode, or shapes that do not fit.
        """
        _check_call(self, x, mode, bias, threads)
        y = _result((*x.shape[:-1], self.shape[0]), out)  # (..., N)
        rows = _rows(x)
        bias = _bias(bias)
        if self._library is None:
            product = reference_matmul(self._tensor, rows, mode, bias).reshape(y.shape)
            y[...] = y + product if add else product
            return y
        stride, outputs = rows.strides[0] // rows.itemsize if len(rows) > 1 else rows.shape[1], self.shape[0]
        left, right = (self.handle, pointer(rows), len(rows), stride), (pointer(bias), pointer(y), outputs)
        failed = self._library.lbk_matmul(*left, *right, add, MODES[mode], threads)
        check(self._library, failed)
        return y


def feed_forward(
    first: PackedMatrix,
    second: PackedMatrix,
    x: np.ndarray,
    activation: str,
    biases: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    mode: str = DEFAULT_MODE,
    threads: int = 1,
    out: np.ndarray | None = None,
    add: bool = False,
) -> np.ndarray:
    """second times activation(first times x): (..., inputs) -> (..., outputs), as `PackedMatrix.matmul` twice.

    The inner numbers of some rows at a time stay in the cache.

    Args:
      activation: "relu" or "swish".
      biases: of both matrices.
      out, add: as there; with `add`, out may be x.
    Raises:
      UserError: an unknown mode or activation, or shapes that do not fit.
    """
    if activation not in ACTIVATIONS:
        raise UserError(f"activation {activation!r} is unknown: take one of {', '.join(ACTIVATIONS)}")
    if second.shape[1] != first.shape[0]:
        raise UserError(f"{second.name} takes {second.shape[1]} inputs, {first.name} gives {first.shape[0]}")
    _check_call(first, x, mode, biases[0], threads)
    y = _result((*x.shape[:-1], second.shape[0]), out)  # (..., N)
    loaded = first._library
    if loaded is None:
        hidden = first.matmul(x, mode, biases[0])
        hidden = np.maximum(hidden, 0) if activation == "relu" else swish(hidden)
        return second.matmul(hidden, mode, biases[1], out=y, add=add)
    rows = np.ascontiguousarray(x, dtype=np.float32)
    inner, outer = _bias(biases[0]), _bias(biases[1])
    left = (first.handle, pointer(inner), ACTIVATIONS[activation], second.handle, pointer(outer))
    count = rows.size // first.shape[1]
    failed = loaded.lbk_feed_forward(*left, pointer(rows), count, pointer(y), add, MODES[mode], threads)
    check(loaded, failed)
    return y


_matrices: weakref.WeakKeyDictionary[PackedTensor, PackedMatrix] = weakref.WeakKeyDictionary()


def matmul(
    tensor: PackedTensor | PackedMatrix,
    x: Any,
    mode: str = DEFAULT_MODE,
    bias: Any = None,
    threads: int = 1,
    out: np.ndarray | None = None,
) -> Any:
    """`PackedMatrix(tensor).matmul(x, ...)`; the matrix is kept as long as the tensor lives.

    Args:
      x, bias: arrays, or torch tensors of any float type and device; the product is then one, float32 on the CPU, and
        no gradient passes through it.
    Raises:
      UserError, PackedFileError: as `PackedMatrix`.
    """
    if _is_torch(x):
        product = matmul(tensor, x.detach().float().cpu().numpy(), mode, bias, threads, out)
        return sys.modules["torch"].from_numpy(product)
    if _is_torch(bias):
        bias = bias.detach().float().cpu().numpy()
    if isinstance(tensor, PackedTensor):
        matrix = _matrices.get(tensor)
        if matrix is None:
            matrix = _matrices[tensor] = PackedMatrix(tensor)
        tensor = matrix
    return tensor.matmul(x, mode, bias, threads, out)


def _is_torch(value: Any) -> bool:
    """Whether it is torch's; torch is not loaded to find out."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def _rows(x: np.ndarray) -> np.ndarray:
    """x (..., K) as a matrix of float32 whose rows are contiguous each; copied only where that is not so yet."""
    if x.ndim == 2 and x.dtype == np.float32 and x.strides[1] == x.itemsize and x.strides[0] > 0:
        return x
    return np.ascontiguousarray(x, dtype=np.float32).reshape(-1, x.shape[-1])  # (M, K)


def _bias(bias: np.ndarray | None) -> np.ndarray | None:
    return None if bias is None else np.ascontiguousarray(bias, dtype=np.float32)


def _result(shape: tuple[int, ...], out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise UserError(f"out must be contiguous float32 of shape {shape}, it is {out.dtype} of {out.shape}")
    return out


def _check_call(matrix: PackedMatrix, x: np.ndarray, mode: str, bias: np.ndarray | None, threads: int) -> None:
    outputs, inputs = matrix.shape
    if mode not in MODES:
        raise UserError(f"mode {mode!r} is unknown: take one of {', '.join(MODES)}")
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not x.ndim or x.shape[-1] != inputs:
        found = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise UserError(f"{matrix.name} takes floats of shape (..., {inputs}), not {found}")
    if bias is not None and bias.shape != (outputs,):
        raise UserError(f"{matrix.name} takes a bias of shape ({outputs},), not {bias.shape}")
    if type(threads) is not int or threads < 1:
        raise UserError(f"threads {threads!r}: give a number from 1")


def _describe(tensor: PackedTensor) -> Tensor:
    """lbk_tensor; it points into the tensor's arrays, which live as long as the structure does."""
    rows, cols = matrix_shape(tensor.shape)
    data = np.ascontiguousarray(tensor.data)
    steps, table = (
        None if a is None else np.ascontiguousarray(a, dtype=np.float32) for a in (tensor.step, tensor.table)
    )
    description = Tensor(
        encoding=tensor.encoding.encode(),
        rows=rows,
        cols=cols,
        data=pointer(data),
        granularity=GRANULARITY[tensor.granularity],
        steps=pointer(steps),
        table=pointer(table),
        table_size=0 if table is None else len(table),
        zero_point=tensor.zero_point,
        input_bits=tensor.input_bits,
    )
    description.arrays = (data, steps, table)
    return description
