"""Rows of weights to rows of bytes and back, by encoding. Vectorised; docs/packed-format.md has the same in words.

    encoding            bits  code c of a weight            in the row's bytes
    binary              1     -1, 1                         a stream of bits: 1 for c = 1
    ternary             1.6   -1, 0, 1                      five a byte: sum of (c_i + 1) * 3^i; 0 to 242
    int3 to int8        N     -2^(N-1) to 2^(N-1) - 1       a stream of N-bit two's complements
    index1 to index8    N     0 to 2^N - 1                  a stream of N-bit numbers
    float16, float32    -     -                             IEEE 754, little-endian

A stream is little-endian: weight i takes bits i*N to i*N + N-1 of its row, and bit 0 is the lowest bit of byte 0. Every
row starts on a byte of its own; what is left of its last byte is zero.

Streams of N bits are made eight weights at a time: eight bytes with N bits each are one 64-bit word, whose neighbours
are pushed together in three steps (bytes to pairs to fours to eights), which leaves N bytes.
"""

from __future__ import annotations

import numpy as np

from lowbit_k2.core.encodings import ENCODINGS, Encoding
from lowbit_k2.packed.errors import PackedFileError

_BYTES = np.arange(256, dtype=np.uint8)
_TRITS = np.stack([_BYTES // 3**i % 3 for i in range(5)], axis=1).astype(np.int8)  # (256, 5), digits 0..2
# What a byte unpacks to, one row per byte. Rows of 8 or 2 codes are gathered as single integers.
_BITS = np.unpackbits(_BYTES[:, None], axis=1, bitorder="little")  # (256, 8)
_BINARY_CODES = _BITS.view(np.int8) * np.int8(2) - np.int8(1)
_TERNARY_CODES = _TRITS - np.int8(1)  # rows 243 to 255 are never used
_NIBBLES = np.stack([_BYTES & 15, _BYTES >> 4], axis=1)  # (256, 2)
_INT4_CODES = (_NIBBLES ^ 8).view(np.int8) - np.int8(8)
_WORD = np.dtype("<u8")
_WIDTHS = (8, 16, 32)  # of the fields that are pushed together, in bits


def encoding_named(name: object) -> Encoding:
    """The encoding of a name. Raises PackedFileError for one that this version does not know."""
    if not isinstance(name, str) or name not in ENCODINGS:
        raise PackedFileError(f"unknown encoding {name!r}: this version knows {', '.join(ENCODINGS)}")
    return ENCODINGS[name]


def number_type(encoding: Encoding) -> np.dtype:
    """Type of unpacked weights: int8 codes, uint8 places in a table, float16 or float32 numbers."""
    if encoding.is_float:
        return np.dtype(f"<f{encoding.bits // 8}")
    return np.dtype(np.uint8 if encoding.is_index else np.int8)


def pack(weights: np.ndarray, encoding: str) -> np.ndarray:
    """Pack rows of codes, or of numbers for the float encodings.

    Args:
      weights: (rows, cols), int8 codes; uint8 for "index1" to "index8"; float16 or float32 numbers for floats.
      encoding: a name in `core.encodings.ENCODINGS`.
    Returns:
      (rows, bytes of a row), uint8.
    Raises:
      PackedFileError: a code outside the encoding's, a number that float16 cannot hold exactly, or one not finite.
    """
    kind = encoding_named(encoding)
    assert weights.ndim == 2 and weights.size, weights.shape
    if kind.is_float:
        return _pack_floats(weights, kind)
    assert weights.dtype == number_type(kind), f"{encoding} takes {number_type(kind)}, found {weights.dtype}"
    low, high = kind.codes
    if weights.min() < low or weights.max() > high or (encoding == "binary" and not weights.all()):
        raise PackedFileError(f"codes {weights.min()} to {weights.max()} do not fit the encoding {encoding}")
    return _pack_codes(np.ascontiguousarray(weights), kind)


def unpack(packed: np.ndarray, encoding: str, cols: int) -> np.ndarray:
    """Inverse of `pack`.

    Args:
      packed: (rows, bytes of a row), uint8.
      encoding: a name in `core.encodings.ENCODINGS`.
      cols: true number of weights in a row.
    Returns:
      (rows, cols), of type `number_type`.
    Raises:
      PackedFileError: bytes that `pack` cannot have written: a ternary byte over 242, or padding that is not zero.
    """
    kind = encoding_named(encoding)
    expected = kind.row_bytes(cols)
    if packed.ndim != 2 or packed.shape[1] != expected:
        raise PackedFileError(f"{cols} weights in {encoding} take {expected} bytes a row, found {packed.shape[-1]}")
    packed = np.ascontiguousarray(packed, dtype=np.uint8)
    if kind.is_float:
        return packed.view(number_type(kind))
    _check_bytes(packed, kind, cols)
    codes = _unpack_codes(packed, kind)  # (rows, cols and padding)
    return np.ascontiguousarray(codes[:, :cols])


def _check_bytes(packed: np.ndarray, encoding: Encoding, cols: int) -> None:
    if encoding.bits is None:
        if packed.max() > 242:
            raise PackedFileError(f"byte {packed.max()} in ternary weights: five of them give 0 to 242")
        used = 3 ** (cols % 5)  # values that the last byte can have; 1 where it is full
    else:
        used = 2 ** (cols * encoding.bits % 8)
    if used > 1 and (packed[:, -1] >= used).any():
        raise PackedFileError(f"padding behind a row of {encoding.name} weights is not zero")


def _pack_floats(weights: np.ndarray, encoding: Encoding) -> np.ndarray:
    target = number_type(encoding)
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(weights, dtype=target)
    if not np.isfinite(stored).all():
        raise PackedFileError(f"numbers that are not finite in {encoding.name}: the model is damaged or out of range")
    if target.itemsize < weights.dtype.itemsize and (stored.astype(weights.dtype) != weights).any():
        raise PackedFileError(f"numbers that {encoding.name} cannot hold exactly: round the weights first")
    return stored.view(np.uint8)


def _pack_codes(codes: np.ndarray, encoding: Encoding) -> np.ndarray:
    bits = encoding.bits
    if bits is None:
        return _pack_ternary(codes)
    if bits == 1:
        return np.packbits(codes > 0, axis=1, bitorder="little")
    if bits == 8:
        return codes.view(np.uint8)
    fields = codes.view(np.uint8) & np.uint8(2**bits - 1)
    return _pack_nibbles(fields) if bits == 4 else _pack_stream(fields, bits)


def _unpack_codes(packed: np.ndarray, encoding: Encoding) -> np.ndarray:
    """(rows, cols and padding), int8 or uint8."""
    bits, signed = encoding.bits, not encoding.is_index
    if bits is None:
        return np.take(_TERNARY_CODES, packed, axis=0).reshape(len(packed), -1)
    if bits == 1:
        return (_BINARY_CODES if signed else _BITS).view(np.uint64).ravel()[packed].view(number_type(encoding))
    if bits == 4:
        return (_INT4_CODES if signed else _NIBBLES).view(np.uint16).ravel()[packed].view(number_type(encoding))
    if bits == 8:
        return packed.view(number_type(encoding))
    fields = _unpack_stream(packed, bits)
    if not signed:
        return fields
    sign = 2 ** (bits - 1)
    fields ^= np.uint8(sign)  # in place: these are the largest arrays of a model
    codes = fields.view(np.int8)
    codes -= np.int8(sign)
    return codes


def _pad_cols(codes: np.ndarray, multiple: int) -> np.ndarray:
    """Zeros behind each row up to a multiple; (rows, cols) uint8."""
    missing = -codes.shape[1] % multiple
    return np.pad(codes, ((0, 0), (0, missing))) if missing else codes


def _pack_ternary(codes: np.ndarray) -> np.ndarray:
    digits = _pad_cols((codes + np.int8(1)).view(np.uint8), 5)
    digits = digits.reshape(len(codes), -1, 5)  # (rows, bytes, 5)
    packed = digits[..., 4].copy()
    for i in (3, 2, 1, 0):  # Horner
        packed *= np.uint8(3)
        packed += digits[..., i]
    return packed


def _pack_nibbles(fields: np.ndarray) -> np.ndarray:
    nibbles = _pad_cols(fields, 2)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)


def _held_bits(bits: int, width: int) -> tuple[int, int]:
    """How many bits a field of `width` bits holds, at its lower end, and a mask of these in every second field."""
    held = bits * width // 8
    return held, sum(2**held - 1 << place for place in range(0, 64, 2 * width))


def _pack_stream(fields: np.ndarray, bits: int) -> np.ndarray:
    """(rows, cols) numbers of `bits` bits, 2 to 7, to (rows, ceil(cols * bits / 8)); uint8."""
    rows, cols = fields.shape
    words = _pad_cols(fields, 8).view(_WORD)  # (rows, words), a weight in each byte
    for width in _WIDTHS:
        held, mask = _held_bits(bits, width)
        upper = words & np.uint64(mask << width)
        upper >>= np.uint64(width - held)
        words = words & np.uint64(mask)
        words |= upper
    packed = words.astype(_WORD, copy=False).view(np.uint8).reshape(rows, -1, 8)[..., :bits]  # (rows, words, bits)
    packed = packed.reshape(rows, -1)  # (rows, bytes and padding)
    return np.ascontiguousarray(packed[:, : -(-cols * bits // 8)])


def _unpack_stream(packed: np.ndarray, bits: int) -> np.ndarray:
    """Inverse of `_pack_stream`: (rows, a multiple of 8) uint8."""
    rows, size = packed.shape
    num_words = -(-size // bits)
    padded = np.zeros((rows, num_words * bits + 8 - bits), np.uint8)
    padded[:, :size] = packed
    # words that overlap: each starts where its eight weights do, and the first masks cut off what is not theirs
    words = np.ndarray((rows, num_words), _WORD, padded, 0, (padded.strides[0], bits)).copy()
    for width in reversed(_WIDTHS):
        held, mask = _held_bits(bits, width)
        upper = words & np.uint64(mask << held)
        upper <<= np.uint64(width - held)
        words = words & np.uint64(mask)
        words |= upper
    return words.astype(_WORD, copy=False).view(np.uint8)  # (rows, cols and padding)
