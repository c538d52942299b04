"""Bit packing against a bit-by-bit reference, and its refusals."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lowbit_k2.packed.bitpack import CODE_ENCODINGS, ENCODINGS, pack, row_bytes, unpack
from lowbit_k2.packed.errors import PackedFileError

CODES = {"binary": [-1, 1], "ternary": [-1, 0, 1], "int4": list(range(-8, 8)), "int8": list(range(-128, 128))}
SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=23)


def reference_row(codes: list[int], encoding: str) -> bytes:
    """One row packed with Python integers, written from the table in docs/packed-format.md."""
    out = bytearray()
    size = {"binary": 8, "ternary": 5, "int4": 2, "int8": 1}[encoding]
    for start in range(0, len(codes), size):
        value = 0
        for place, code in enumerate(codes[start : start + size]):
            if encoding == "binary":
                value |= (code == 1) << place
            elif encoding == "ternary":
                value += (code + 1) * 3**place
            else:
                value |= (code % (16 if encoding == "int4" else 256)) << (4 * place)
        out.append(value)
    return bytes(out)


@pytest.mark.parametrize("encoding", CODE_ENCODINGS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_codes_survive_and_bytes_are_the_documented_ones(encoding: str, data: st.DataObject) -> None:
    codes = data.draw(arrays(np.int8, SHAPES, elements=st.sampled_from(CODES[encoding])))
    packed = pack(codes, encoding)
    assert packed.dtype == np.uint8 and packed.shape == (len(codes), row_bytes(codes.shape[1], encoding))
    assert [row.tobytes() for row in packed] == [reference_row(row.tolist(), encoding) for row in codes]
    unpacked = unpack(packed, encoding, codes.shape[1])
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, codes)


@pytest.mark.parametrize(("encoding", "kind"), [("float16", np.float16), ("float32", np.float32)])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_floats_survive_bit_by_bit(encoding: str, kind: type, data: st.DataObject) -> None:
    patterns = data.draw(arrays(np.uint16 if encoding == "float16" else np.uint32, SHAPES))
    values = patterns.view(kind)
    values = np.where(np.isfinite(values), values, kind(0))
    packed = pack(values, encoding)
    unpacked = unpack(packed, encoding, values.shape[1])
    assert unpacked.dtype == kind and unpacked.tobytes() == values.tobytes()


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, SHAPES), st.sampled_from(CODE_ENCODINGS), st.integers(0, 7))
def test_any_bytes_are_refused_or_are_the_only_way_to_write_their_codes(
    packed: np.ndarray, encoding: str, unused: int
) -> None:
    per_byte = {"binary": 8, "ternary": 5, "int4": 2, "int8": 1}[encoding]
    cols = packed.shape[1] * per_byte - unused % per_byte
    try:
        codes = unpack(packed, encoding, cols)
    except PackedFileError:
        return
    np.testing.assert_array_equal(pack(codes, encoding), packed)


@pytest.mark.parametrize(
    ("encoding", "code"), [("binary", 0), ("binary", 2), ("ternary", -2), ("ternary", 2), ("int4", 8), ("int4", -9)]
)
def test_pack_refuses_codes_of_another_grid(encoding: str, code: int) -> None:
    codes = np.ones((3, 7), np.int8)
    codes[1, 4] = code
    with pytest.raises(PackedFileError, match=encoding):
        pack(codes, encoding)


@pytest.mark.parametrize("byte", [243, 255])
def test_unpack_refuses_ternary_bytes_that_mean_nothing(byte: int) -> None:
    with pytest.raises(PackedFileError, match="0 to 242"):
        unpack(np.array([[0, byte]], np.uint8), "ternary", 10)


@pytest.mark.parametrize(("encoding", "cols", "byte"), [("binary", 11, 8), ("ternary", 7, 9), ("int4", 3, 16)])
def test_unpack_refuses_padding_that_is_not_zero(encoding: str, cols: int, byte: int) -> None:
    packed = np.zeros((2, 2), np.uint8)
    packed[1, 1] = byte - 1
    unpack(packed, encoding, cols)
    packed[1, 1] = byte
    with pytest.raises(PackedFileError, match="padding"):
        unpack(packed, encoding, cols)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_unpack_refuses_rows_of_another_length(encoding: str) -> None:
    with pytest.raises(PackedFileError, match="bytes a row"):
        unpack(np.zeros((2, 9), np.uint8), encoding, 100)


def test_unknown_encodings_are_refused() -> None:
    with pytest.raises(PackedFileError, match="'int5'.*binary, ternary"):
        pack(np.ones((1, 1), np.int8), "int5")
    with pytest.raises(PackedFileError, match="int5"):
        unpack(np.ones((1, 1), np.uint8), "int5", 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_pack_refuses_numbers_that_half_precision_cannot_hold(value: float) -> None:
    with pytest.raises(PackedFileError, match="not finite"):
        pack(np.array([[1.0, value]], np.float32), "float16")


def test_pack_never_rounds() -> None:
    with pytest.raises(PackedFileError, match="exactly"):
        pack(np.array([[0.1]], np.float32), "float16")
    assert unpack(pack(np.array([[0.125]], np.float32), "float16"), "float16", 1) == 0.125


def test_a_strided_view_packs_like_its_copy() -> None:
    codes = np.random.default_rng(1).integers(-1, 2, (12, 30), dtype=np.int8)
    np.testing.assert_array_equal(pack(codes.T[::2], "ternary"), pack(codes.T[::2].copy(), "ternary"))


@pytest.mark.parametrize("encoding", CODE_ENCODINGS)
def test_34_million_weights_take_well_under_a_second(encoding: str) -> None:
    codes = np.random.default_rng(0).choice(np.array(CODES[encoding], np.int8), (4096, 8301))
    start = time.process_time()
    packed = pack(codes, encoding)
    unpacked = unpack(packed, encoding, 8301)
    assert time.process_time() - start < 2.0, "a guard against Python loops; measured 0.1 s"
    np.testing.assert_array_equal(unpacked, codes)
