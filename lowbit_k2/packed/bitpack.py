"""Rows of weights to rows of bytes and back, by encoding. Vectorised; docs/packed-format.md has the same in words.

    encoding  weights a byte  code c of a weight                     in the byte
    binary    8               -1, 1                                  bit i is 1 for c = 1; first weight in bit 0
    ternary   5               -1, 0, 1                               sum of (c_i + 1) * 3^i; 0 to 242
    int4      2               -8 to 7                                two's complement, first weight in the low nibble
    int8      1               -128 to 127                            two's complement
    float16   1/2             -                                      IEEE 754, little-endian
    float32   1/4             -                                      IEEE 754, little-endian

Every row starts on a byte of its own; what is left of its last byte is zero.
"""

from __future__ import annotations

import numpy as np

from lowbit_k2.packed.errors import PackedFileError

WEIGHTS_PER_BYTE = {"binary": 8, "ternary": 5, "int4": 2, "int8": 1}
FLOAT_TYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
CODE_ENCODINGS = tuple(WEIGHTS_PER_BYTE)
ENCODINGS = (*CODE_ENCODINGS, *FLOAT_TYPES)
CODE_RANGE = {"binary": (-1, 1), "ternary": (-1, 1), "int4": (-8, 7), "int8": (-128, 127)}

_BYTES = np.arange(256, dtype=np.uint8)
_TRITS = np.stack([_BYTES // 3**i % 3 for i in range(5)], axis=1).astype(np.int8)  # (256, 5), digits 0..2
# What a byte unpacks to, one row per byte. Rows of 8 or 2 codes are gathered as single integers.
_BINARY_CODES = np.unpackbits(_BYTES[:, None], axis=1, bitorder="little").view(np.int8) * np.int8(2) - np.int8(1)
_TERNARY_CODES = _TRITS - np.int8(1)  # rows 243 to 255 are never used
_INT4_CODES = ((np.stack([_BYTES & 15, _BYTES >> 4], axis=1) ^ 8).view(np.int8)) - np.int8(8)  # (256, 2)


def check_encoding(encoding: str) -> None:
    """Raises PackedFileError for a name that this version does not know."""
    if encoding not in ENCODINGS:
        raise PackedFileError(f"unknown encoding {encoding!r}: this version knows {', '.join(ENCODINGS)}")


def row_bytes(cols: int, encoding: str) -> int:
    """Bytes of one row of `cols` weights."""
    if encoding in FLOAT_TYPES:
        return cols * FLOAT_TYPES[encoding].itemsize
    return -(-cols // WEIGHTS_PER_BYTE[encoding])


def pack(weights: np.ndarray, encoding: str) -> np.ndarray:
    """Pack rows of codes, or of numbers for the float encodings.

    Args:
      weights: (rows, cols), int8 codes; float16 or float32 numbers for "float16" and "float32".
      encoding: one of `ENCODINGS`.
    Returns:
      (rows, row_bytes(cols, encoding)), uint8.
    Raises:
      PackedFileError: a code outside the encoding's, a number that float16 cannot hold exactly, or one not finite.
    """
    check_encoding(encoding)
    assert weights.ndim == 2 and weights.size, weights.shape
    if encoding in FLOAT_TYPES:
        return _pack_floats(weights, encoding)
    assert weights.dtype == np.int8, weights.dtype
    low, high = CODE_RANGE[encoding]
    if weights.min() < low or weights.max() > high or (encoding == "binary" and not weights.all()):
        raise PackedFileError(f"codes {weights.min()} to {weights.max()} do not fit the encoding {encoding}")
    return _PACKERS[encoding](np.ascontiguousarray(weights))


def unpack(packed: np.ndarray, encoding: str, cols: int) -> np.ndarray:
    """Inverse of `pack`.

    Args:
      packed: (rows, row_bytes(cols, encoding)), uint8.
      encoding: one of `ENCODINGS`.
      cols: true number of weights in a row.
    Returns:
      (rows, cols), int8, or float16 or float32 for the float encodings.
    Raises:
      PackedFileError: bytes that `pack` cannot have written: a ternary byte over 242, or padding that is not zero.
    """
    check_encoding(encoding)
    expected = row_bytes(cols, encoding)
    if packed.ndim != 2 or packed.shape[1] != expected:
        raise PackedFileError(f"{cols} weights in {encoding} take {expected} bytes a row, found {packed.shape[-1]}")
    packed = np.ascontiguousarray(packed, dtype=np.uint8)
    if encoding in FLOAT_TYPES:
        return packed.view(FLOAT_TYPES[encoding])
    _check_bytes(packed, encoding, cols)
    codes = _UNPACKERS[encoding](packed)  # (rows, cols and padding)
    return np.ascontiguousarray(codes[:, :cols])


def _check_bytes(packed: np.ndarray, encoding: str, cols: int) -> None:
    if encoding == "ternary" and packed.max() > 242:
        raise PackedFileError(f"byte {packed.max()} in ternary weights: five of them give 0 to 242")
    used = cols % WEIGHTS_PER_BYTE[encoding]
    states = {"binary": 2, "ternary": 3, "int4": 16, "int8": 256}[encoding]
    if used and (packed[:, -1] >= states**used).any():
        raise PackedFileError(f"padding behind a row of {encoding} weights is not zero")


def _pack_floats(weights: np.ndarray, encoding: str) -> np.ndarray:
    target = FLOAT_TYPES[encoding]
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(weights, dtype=target)
    if not np.isfinite(stored).all():
        raise PackedFileError(f"numbers that are not finite in {encoding}: the model is damaged or out of range")
    if target.itemsize < weights.dtype.itemsize and (stored.astype(weights.dtype) != weights).any():
        raise PackedFileError(f"numbers that {encoding} cannot hold exactly: round the weights first")
    return stored.view(np.uint8)


def _pad_cols(codes: np.ndarray, multiple: int) -> np.ndarray:
    """Zeros behind each row up to a multiple; (rows, cols) uint8."""
    missing = -codes.shape[1] % multiple
    return np.pad(codes, ((0, 0), (0, missing))) if missing else codes


def _pack_binary(codes: np.ndarray) -> np.ndarray:
    return np.packbits(codes > 0, axis=1, bitorder="little")


def _pack_ternary(codes: np.ndarray) -> np.ndarray:
    digits = _pad_cols((codes + np.int8(1)).view(np.uint8), 5)
    digits = digits.reshape(len(codes), -1, 5)  # (rows, bytes, 5)
    packed = digits[..., 4].copy()
    for i in (3, 2, 1, 0):  # Horner
        packed *= np.uint8(3)
        packed += digits[..., i]
    return packed


def _pack_int4(codes: np.ndarray) -> np.ndarray:
    nibbles = _pad_cols(codes.view(np.uint8) & np.uint8(15), 2)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)


def _pack_int8(codes: np.ndarray) -> np.ndarray:
    return codes.view(np.uint8)


def _unpack_binary(packed: np.ndarray) -> np.ndarray:
    return _BINARY_CODES.view(np.uint64).ravel()[packed].view(np.int8)


def _unpack_ternary(packed: np.ndarray) -> np.ndarray:
    return np.take(_TERNARY_CODES, packed, axis=0).reshape(len(packed), -1)


def _unpack_int4(packed: np.ndarray) -> np.ndarray:
    return _INT4_CODES.view(np.uint16).ravel()[packed].view(np.int8)


def _unpack_int8(packed: np.ndarray) -> np.ndarray:
    return packed.view(np.int8)


_PACKERS = {"binary": _pack_binary, "ternary": _pack_ternary, "int4": _pack_int4, "int8": _pack_int8}
_UNPACKERS = {"binary": _unpack_binary, "ternary": _unpack_ternary, "int4": _unpack_int4, "int8": _unpack_int8}
