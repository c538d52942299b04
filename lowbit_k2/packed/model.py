"""A packed model in memory: its tensors as they lie in the file, unpacked on request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbit_k2.packed.bitpack import FLOAT_TYPES, check_encoding, pack, row_bytes, unpack
from lowbit_k2.packed.errors import PackedFileError

BLOCK = 64  # columns that share a step with granularity "block64"
GRANULARITIES = ("tensor", "channel", "block64")
MAX_DIMS = 8


def step_shape(shape: Sequence[int], granularity: str) -> tuple[int, ...]:
    """Shape of the steps of a tensor: (), (rows,) or (rows, blocks); rows = dimension 0, columns = all others."""
    if granularity == "tensor":
        return ()
    rows, cols = matrix_shape(shape)
    return (rows,) if granularity == "channel" else (rows, -(-cols // BLOCK))


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) that a tensor is packed as."""
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """One tensor. Make it with `from_codes` or `from_values`; `read_packed` makes it from a file.

    name, role: of the parameter, e.g. "encoder.layers.0.ff1.w1.weight", "encoder_linear".
    encoding: how `data` is to be read, one of bitpack.ENCODINGS.
    shape: true shape.
    data: uint8 (rows, bytes of a row) for encodings of codes, else floats of `shape`. Read-only and memory-mapped
      where the tensor came from a file.
    step: float32, shape `step_shape(shape, granularity)`; None for floats. Always positive.
    table: what each code means, in units of `step`, for encodings that are indices (code 0 is the first entry).
    zero_point: the code that means 0.
    """

    name: str
    role: str
    encoding: str
    shape: tuple[int, ...]
    data: np.ndarray
    step: np.ndarray | None = None
    granularity: str = "tensor"
    table: tuple[float, ...] | None = None
    zero_point: int = 0
    aliases: tuple[str, ...] = ()
    input_bits: int = 0

    def __post_init__(self) -> None:
        if self.is_float:
            expected, found = self.shape, self.data.shape
        else:
            rows, cols = matrix_shape(self.shape)
            expected, found = (rows, row_bytes(cols, self.encoding)), self.data.shape
            _check_steps(self)
        if found != expected:
            raise PackedFileError(f"tensor {self.name}: data of shape {found}, expected {expected}")

    @classmethod
    def from_codes(
        cls,
        name: str,
        role: str,
        encoding: str,
        codes: np.ndarray,
        step: np.ndarray,
        granularity: str = "tensor",
        table: Sequence[float] | None = None,
        zero_point: int = 0,
    ) -> PackedTensor:
        """Pack int8 codes of any shape with at least one dimension.

        Raises:
          PackedFileError: codes that the encoding cannot hold, or steps of a wrong shape, not finite or not positive.
        """
        check_encoding(encoding)
        if not codes.ndim or not codes.size:
            raise PackedFileError(f"tensor {name}: codes of shape {codes.shape} cannot be packed")
        step = np.asarray(step, dtype=np.float32)
        try:
            data = pack(codes.reshape(matrix_shape(codes.shape)), encoding)
        except PackedFileError as error:
            raise PackedFileError(f"tensor {name}: {error}") from None
        table = None if table is None else tuple(float(value) for value in table)
        return cls(name, role, encoding, codes.shape, data, step, granularity, table, zero_point)

    @classmethod
    def from_values(cls, name: str, role: str, encoding: str, values: np.ndarray) -> PackedTensor:
        """Store floats of any shape as "float16" or "float32", exactly.

        Raises:
          PackedFileError: numbers that are not finite, or that "float16" would round.
        """
        check_encoding(encoding)
        if not values.size:
            raise PackedFileError(f"tensor {name} is empty")
        try:
            data = pack(values.reshape(1, -1), encoding)
        except PackedFileError as error:
            raise PackedFileError(f"tensor {name}: {error}") from None
        return cls(name, role, encoding, values.shape, data.view(FLOAT_TYPES[encoding]).reshape(values.shape))

    @property
    def is_float(self) -> bool:
        return self.encoding in FLOAT_TYPES

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file, steps included."""
        return self.data.nbytes + (0 if self.step is None else self.step.nbytes)

    @property
    def values(self) -> np.ndarray:
        """Numbers of a float tensor, float16 or float32, in its true shape."""
        assert self.is_float, f"{self.name} holds codes in {self.encoding}"
        return self.data

    @property
    def codes(self) -> np.ndarray:
        """int8 codes in the true shape, unpacked anew at each call.

        Raises:
          PackedFileError: bytes that no writer makes.
        """
        assert not self.is_float, f"{self.name} holds {self.encoding}"
        try:
            codes = unpack(self.data, self.encoding, matrix_shape(self.shape)[1])
        except PackedFileError as error:
            raise PackedFileError(f"tensor {self.name}: {error}") from None
        return codes.reshape(self.shape)

    def dequantize(self) -> np.ndarray:
        """float32 weights in the true shape: (code - zero_point) * step, or table[code] * step."""
        if self.is_float:
            return self.values.astype(np.float32)
        codes = self.codes
        if self.table is not None:
            if codes.min() < 0 or codes.max() >= len(self.table):
                raise PackedFileError(f"tensor {self.name}: a code outside its table of {len(self.table)} entries")
            numbers = np.asarray(self.table, dtype=np.float32)[codes]
        else:
            numbers = codes.astype(np.float32) - np.float32(self.zero_point)
        return numbers * self._spread_step()

    def _spread_step(self) -> np.ndarray:
        """Steps that broadcast against the tensor."""
        if self.granularity == "tensor":
            return self.step
        rows, cols = matrix_shape(self.shape)
        if self.granularity == "channel":
            return self.step.reshape(rows, *(1,) * (len(self.shape) - 1))
        return np.repeat(self.step, BLOCK, axis=1)[:, :cols].reshape(self.shape)


def _check_steps(tensor: PackedTensor) -> None:
    if tensor.granularity not in GRANULARITIES:
        raise PackedFileError(f"tensor {tensor.name}: unknown granularity {tensor.granularity!r} of its steps")
    expected = step_shape(tensor.shape, tensor.granularity)
    if tensor.step is None or tensor.step.shape != expected:
        found = None if tensor.step is None else tensor.step.shape
        raise PackedFileError(f"tensor {tensor.name}: steps of shape {found}, expected {expected}")
    if not np.isfinite(tensor.step).all() or not (tensor.step > 0).all():
        raise PackedFileError(f"tensor {tensor.name}: every step must be a positive number")
    if tensor.table is not None and (not tensor.table or not np.isfinite(tensor.table).all()):
        raise PackedFileError(f"tensor {tensor.name}: its table must hold finite numbers")
    if tensor.table is not None and tensor.zero_point:
        raise PackedFileError(f"tensor {tensor.name}: a table and a zero point exclude each other")


@dataclass(frozen=True)
class FileSizes:
    """Bytes of the parts of a file; with the tensors' own they add up to `total`, the size on disk."""

    total: int
    header: int  # of safetensors, with its 8 bytes of length
    index: int  # descriptions of tensors, model and features, compressed
    tokens: int  # compressed


@dataclass(frozen=True, eq=False)
class PackedModel:
    """All that inference needs.

    tensors: in any order; names are unique.
    model_config, features: plain data for JSON, e.g. `ConformerConfig.to_dict()`, `FeatureConfig.to_dict()`.
    tokens, tokens_kind: bytes of the tokenizer and the name of their reader ("sentencepiece", "lexicon").
    extra: plain data for JSON, free: precision, origin.
    sizes: of the file that the model was read from, else None.
    """

    tensors: Sequence[PackedTensor]
    model_config: Mapping[str, Any]
    tokens: bytes = b""
    tokens_kind: str = ""
    features: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    sizes: FileSizes | None = None

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for tensor in self.tensors:
            if tensor.name in seen:
                raise PackedFileError(f"tensor {tensor.name} is there twice")
            seen.add(tensor.name)
