"""Entropy coding of codes: common ones in fewer bits than rare ones.

Weights of an even grid pile up around zero: their codes hold a tenth or more less than they take as streams, those of
k-means tables next to nothing (docs/packed-format.md has figures). What is coded is a zlib stream by Huffman codes
alone, without matches, for weights repeat nothing: it stands for the tensor's rows as bytes that hold whole codes, the
tensor's own encoding where that is so, else `int8` or `index8`. A Huffman code has a bit at least, so that such a
stream gives no more than eight times its length: a reader can refuse what claims more before it allocates anything.
"""

from __future__ import annotations

import zlib

import numpy as np

from lowbit_k2.core.encodings import ENCODINGS, Encoding
from lowbit_k2.packed.bitpack import pack, unpack
from lowbit_k2.packed.errors import PackedFileError

WORTH = 0.9  # of its plain bytes: what is not smaller stays as it is, mapped into memory
MOST = 8  # bytes that one byte of a stream can stand for


def carrier(encoding: Encoding) -> Encoding:
    """The encoding whose bytes are coded: each holds whole codes."""
    if encoding.bits is None or 8 % encoding.bits == 0:
        return encoding
    return ENCODINGS["index8" if encoding.is_index else "int8"]


def shrink(data: np.ndarray, encoding: Encoding, cols: int) -> bytes | None:
    """The stream of a tensor's packed rows (rows, bytes of a row); None where it is not worth it."""
    whole = carrier(encoding)
    rows = data if whole is encoding else pack(unpack(data, encoding.name, cols), whole.name)
    coder = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    stream = coder.compress(rows.tobytes()) + coder.flush()
    return stream if len(stream) < WORTH * data.nbytes else None


def expand(stream: np.ndarray, encoding: Encoding, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `shrink`: packed rows, read-only.

    Args:
      stream: uint8.
      shape: (rows, cols).
    Raises:
      PackedFileError: it is no such stream, or not one of so many weights.
    """
    rows, cols = shape
    whole = carrier(encoding)
    size = rows * whole.row_bytes(cols)
    if size > MOST * len(stream):
        raise PackedFileError(f"{len(stream)} coded bytes cannot stand for {rows} rows of {cols} weights")
    reader = zlib.decompressobj()
    try:
        content = reader.decompress(stream.tobytes(), size + 1)
    except zlib.error as error:
        raise PackedFileError(f"its coded bytes cannot be read: {error}") from None
    if len(content) != size or not reader.eof or reader.unused_data:
        raise PackedFileError(f"its coded bytes are no single zlib stream of {size} bytes")
    data = np.frombuffer(content, np.uint8).reshape(rows, -1)
    if whole is not encoding:
        data = pack(unpack(data, whole.name, cols), encoding.name)
        data.flags.writeable = False
    return data
