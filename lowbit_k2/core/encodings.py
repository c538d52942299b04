"""How weights lie on disk: encodings by name, their codes, and the bytes that a tensor takes.

    binary              1 bit    -1, 1                       8 weights a byte
    ternary             1.6 bit  -1, 0, 1                    5 weights a byte, base 3
    int3 .. int8        N bits   -2^(N-1) .. 2^(N-1) - 1     a stream of N-bit two's complements
    index1 .. index8    N bits   0 .. 2^N - 1                a stream of N-bit numbers: places in a table
    float16, float32                                         IEEE 754

The bytes themselves are made in `packed/bitpack.py`; docs/packed-format.md has the same in words. This is the one
place that knows how many bytes a tensor takes: reports estimate with it, files are read with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowbit_k2.core.grids import FLOAT_BITS, HALF_BITS, group_shape, matrix_shape

STEP_BYTES = TABLE_BYTES = 4  # float32


@dataclass(frozen=True)
class Encoding:
    """One way to store weights.

    bits: of a weight in the stream; None for `ternary`, which is no stream of bits.
    codes: smallest and largest code; None for floats.
    is_index: codes are places in a table of the tensor's own.
    """

    name: str
    bits: int | None
    codes: tuple[int, int] | None
    is_index: bool = False

    @property
    def is_float(self) -> bool:
        return self.codes is None

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` weights; every row starts on a byte of its own."""
        return -(-cols // 5) if self.bits is None else -(-cols * self.bits // 8)


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        Encoding("binary", 1, (-1, 1)),
        Encoding("ternary", None, (-1, 1)),
        *(Encoding(f"int{n}", n, (-(2 ** (n - 1)), 2 ** (n - 1) - 1)) for n in range(3, 9)),
        *(Encoding(f"index{n}", n, (0, 2**n - 1), is_index=True) for n in range(1, 9)),
        Encoding("float16", 16, None),
        Encoding("float32", 32, None),
    )
}
_OF_BITS = {1: "binary", 2: "ternary", **{n: f"int{n}" for n in range(3, 9)}, HALF_BITS: "float16"}
_OF_BITS[FLOAT_BITS] = "float32"


def encoding_of(bits: int, is_index: bool = False) -> Encoding:
    """The encoding of a precision: of its linear grid, or with `is_index` of places in a table of 2^bits entries."""
    return ENCODINGS[f"index{bits}" if is_index and bits < HALF_BITS else _OF_BITS[bits]]


def tensor_bytes(shape: Sequence[int], encoding: Encoding, granularity: str = "tensor", table_size: int = 0) -> int:
    """Bytes of a tensor in a packed file, its steps and its table included; its line in the index is not."""
    if encoding.is_float:
        return math.prod(shape) * encoding.bits // 8
    rows, cols = matrix_shape(shape)
    steps = math.prod(group_shape(shape, granularity))
    return rows * encoding.row_bytes(cols) + steps * STEP_BYTES + table_size * TABLE_BYTES
