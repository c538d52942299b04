"""One tensor of a packed file: its bytes as they lie there, unpacked on request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit_k2.core.encodings import Encoding, tensor_bytes
from lowbit_k2.core.grids import BLOCK, GRANULARITIES, group_shape, matrix_shape
from lowbit_k2.packed.bitpack import encoding_named, number_type, pack, unpack
from lowbit_k2.packed.errors import PackedFileError

MAX_DIMS = 8
INPUT_BITS = (0, *range(2, 17))  # of a weight's module; a learned grid of an activation may have 1
ZERO_POINTS = range(-128, 256)


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """One tensor. Make it with `from_codes` or `from_values`; `read_packed` makes it from a file.

    name, role: of the parameter, e.g. "encoder.layers.0.ff1.w1.weight", "encoder_linear".
    encoding: how `data` is to be read, a name in `core.encodings.ENCODINGS`.
    shape: true shape.
    data: uint8 (rows, bytes of a row) for encodings of codes, else floats of `shape`. Read-only and memory-mapped
      where the tensor came from a file.
    step: float32, shape `group_shape(shape, granularity)`; None for floats. Always positive.
    table: what each code means, in units of `step`: float32 (entries,), with index encodings and only there.
    zero_point: the code that means 0; of signed codes.
    aliases: other names of the same tensor, where weights are tied.
    input_bits: to how many bits the input of the tensor's module is quantized, 2 to 16; 0: it is not.
    coded_bytes: what `data` takes in the file that the tensor was read from, where it is coded there (coding.py).
    """

    name: str
    role: str
    encoding: str
    shape: tuple[int, ...]
    data: np.ndarray
    step: np.ndarray | None = None
    granularity: str = "tensor"
    table: np.ndarray | None = None
    zero_point: int = 0
    aliases: tuple[str, ...] = ()
    input_bits: int = 0
    coded_bytes: int | None = None

    def __post_init__(self) -> None:
        try:
            _check(self)
        except PackedFileError as error:
            raise PackedFileError(f"tensor {self.name}: {error}") from None

    @classmethod
    def from_codes(
        cls,
        name: str,
        role: str,
        encoding: str,
        codes: np.ndarray,
        step: np.ndarray,
        granularity: str = "tensor",
        table: Sequence[float] | np.ndarray | None = None,
        zero_point: int = 0,
        **notes: Any,
    ) -> PackedTensor:
        """Pack codes of any shape with at least one dimension: int8, or uint8 for index encodings.

        Args:
          notes: `aliases`, `input_bits`.
        Raises:
          PackedFileError: codes that the encoding or the table cannot hold; steps of a wrong shape, not finite or not
            positive; a table that is missing, out of place, too long or not finite.
        """
        if not codes.ndim or not codes.size:
            raise PackedFileError(f"tensor {name}: codes of shape {codes.shape} cannot be packed")
        step = np.asarray(step, dtype=np.float32)
        if table is not None:
            with np.errstate(over="ignore"):  # an infinite entry is refused below
                table = np.array(table, dtype=np.float32)
        try:
            data = pack(codes.reshape(matrix_shape(codes.shape)), encoding)
            if table is not None:
                _check_codes(codes, table)
        except PackedFileError as error:
            raise PackedFileError(f"tensor {name}: {error}") from None
        return cls(name, role, encoding, codes.shape, data, step, granularity, table, zero_point, **notes)

    @classmethod
    def from_values(cls, name: str, role: str, encoding: str, values: np.ndarray, **notes: Any) -> PackedTensor:
        """Store floats of any shape as "float16" or "float32", exactly.

        Args:
          notes: `aliases`, `input_bits`.
        Raises:
          PackedFileError: numbers that are not finite, or that "float16" would round.
        """
        if not values.size:
            raise PackedFileError(f"tensor {name} is empty")
        try:
            data = pack(values.reshape(1, -1), encoding)
        except PackedFileError as error:
            raise PackedFileError(f"tensor {name}: {error}") from None
        numbers = data.view(number_type(encoding_named(encoding))).reshape(values.shape)
        return cls(name, role, encoding, values.shape, numbers, **notes)

    @property
    def is_float(self) -> bool:
        return encoding_named(self.encoding).is_float

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the tensor, its own first."""
        return (self.name, *self.aliases)

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file, steps and table included."""
        table_size = 0 if self.table is None else len(self.table)
        plain = tensor_bytes(self.shape, encoding_named(self.encoding), self.granularity, table_size)
        return plain - self.data.nbytes + self.code_bytes

    @property
    def code_bytes(self) -> int:
        """Of them those of `data`."""
        return self.data.nbytes if self.coded_bytes is None else self.coded_bytes

    @property
    def values(self) -> np.ndarray:
        """Numbers of a float tensor, float16 or float32, in its true shape."""
        assert self.is_float, f"{self.name} holds codes in {self.encoding}"
        return self.data

    @property
    def codes(self) -> np.ndarray:
        """Codes in the true shape, int8 or (places in the table) uint8, unpacked anew at each call.

        Raises:
          PackedFileError: bytes that no writer makes, or a code beyond the table.
        """
        assert not self.is_float, f"{self.name} holds {self.encoding}"
        try:
            codes = unpack(self.data, self.encoding, matrix_shape(self.shape)[1])
            if self.table is not None:
                _check_codes(codes, self.table)
        except PackedFileError as error:
            raise PackedFileError(f"tensor {self.name}: {error}") from None
        return codes.reshape(self.shape)

    def dequantize(self) -> np.ndarray:
        """float32 weights in the true shape: (code - zero_point) * step, or table[code] * step."""
        if self.is_float:
            return self.values.astype(np.float32)
        if self.table is not None:
            numbers = self.table[self.codes]
        else:
            numbers = self.codes.astype(np.float32)
            if self.zero_point:
                numbers -= np.float32(self.zero_point)
        numbers *= self._spread_step()  # in place: these are the largest arrays of a model
        return numbers

    def _spread_step(self) -> np.ndarray:
        """Steps that broadcast against the tensor."""
        if self.granularity == "tensor":
            return self.step
        rows, cols = matrix_shape(self.shape)
        if self.granularity == "channel":
            return self.step.reshape(rows, *(1,) * (len(self.shape) - 1))
        return np.repeat(self.step, BLOCK, axis=1)[:, :cols].reshape(self.shape)


def _check(tensor: PackedTensor) -> None:
    encoding = encoding_named(tensor.encoding)
    may_be = INPUT_BITS if not encoding.is_float else (*INPUT_BITS, 1)
    if type(tensor.input_bits) is not int or tensor.input_bits not in may_be:
        raise PackedFileError(f"inputs of {tensor.input_bits!r} bits: 2 to 16 are possible, or 0 for floats")
    if encoding.is_float:
        expected = tensor.shape
        if tensor.step is not None or tensor.table is not None or tensor.zero_point:
            raise PackedFileError(f"{encoding.name} has no steps, no table and no zero point")
    else:
        rows, cols = matrix_shape(tensor.shape)
        expected = (rows, encoding.row_bytes(cols))
        _check_steps(tensor)
        _check_grid(tensor, encoding)
    if tensor.data.shape != expected:
        raise PackedFileError(f"data of shape {tensor.data.shape}, expected {expected}")
    if encoding.is_float and not np.isfinite(tensor.data).all():
        raise PackedFileError("its numbers must be finite")


def _check_steps(tensor: PackedTensor) -> None:
    if tensor.granularity not in GRANULARITIES:
        raise PackedFileError(f"unknown granularity {tensor.granularity!r} of its steps")
    expected = group_shape(tensor.shape, tensor.granularity)
    if tensor.step is None or tensor.step.shape != expected:
        found = None if tensor.step is None else tensor.step.shape
        raise PackedFileError(f"steps of shape {found}, expected {expected}")
    if not np.isfinite(tensor.step).all() or not (tensor.step > 0).all():
        raise PackedFileError("every step must be a positive number")


def _check_grid(tensor: PackedTensor, encoding: Encoding) -> None:
    table = tensor.table
    if type(tensor.zero_point) is not int or tensor.zero_point not in ZERO_POINTS:
        raise PackedFileError(f"{tensor.zero_point!r} is no zero point")
    if not encoding.is_index:
        if table is not None:
            raise PackedFileError(f"a table belongs to an index encoding, not to {encoding.name}")
        return
    if tensor.zero_point:
        raise PackedFileError("a table and a zero point exclude each other")
    largest = encoding.codes[1] + 1
    if table is None or table.ndim != 1 or not 1 <= len(table) <= largest:
        found = "no table" if table is None else f"a table of shape {table.shape}"
        raise PackedFileError(f"{found}: {encoding.name} needs one of 1 to {largest} entries")
    if table.dtype != np.float32 or not np.isfinite(table).all():
        raise PackedFileError("its table must hold finite numbers in float32")


def _check_codes(codes: np.ndarray, table: np.ndarray) -> None:
    if codes.max() >= len(table):
        raise PackedFileError(f"code {codes.max()} lies outside its table of {len(table)} entries")
