"""Bit packing against a bit-by-bit reference, and its refusals."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lowbit_k2.core.encodings import ENCODINGS
from lowbit_k2.packed.bitpack import pack, unpack
from lowbit_k2.packed.errors import PackedFileError
from tests.packed.samples import GRIDS

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=23)
STREAMS = [name for name in GRIDS if name != "ternary"]


def bits_of(encoding: str) -> int:
    return {"binary": 1}.get(encoding) or int(encoding[-1])


def reference_row(codes: list[int], encoding: str) -> bytes:
    """One row packed with Python integers, written from the table in docs/packed-format.md."""
    if encoding == "ternary":
        places = [codes[start : start + 5] for start in range(0, len(codes), 5)]
        return bytes(sum((code + 1) * 3**i for i, code in enumerate(five)) for five in places)
    bits, stream = bits_of(encoding), 0
    for i, code in enumerate(codes):
        stream |= ((code + 1) // 2 if encoding == "binary" else code % 2**bits) << i * bits
    return stream.to_bytes(-(-len(codes) * bits // 8), "little")


@pytest.mark.parametrize("encoding", GRIDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_codes_survive_and_bytes_are_the_documented_ones(encoding: str, data: st.DataObject) -> None:
    grid = GRIDS[encoding]
    codes = data.draw(arrays(grid.dtype, SHAPES, elements=st.sampled_from(grid.tolist())))
    packed = pack(codes, encoding)
    assert packed.dtype == np.uint8 and packed.shape == (len(codes), ENCODINGS[encoding].row_bytes(codes.shape[1]))
    assert [row.tobytes() for row in packed] == [reference_row(row.tolist(), encoding) for row in codes]
    unpacked = unpack(packed, encoding, codes.shape[1])
    assert unpacked.dtype == grid.dtype
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


@pytest.mark.parametrize("encoding", GRIDS)
@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, SHAPES), st.integers(0, 7))
def test_any_bytes_are_refused_or_are_the_only_way_to_write_their_codes(
    encoding: str, packed: np.ndarray, unused: int
) -> None:
    row = packed.shape[1]
    most = 5 * row if encoding == "ternary" else 8 * row // bits_of(encoding)
    cols = most - unused
    if cols < 1 or ENCODINGS[encoding].row_bytes(cols) != row:
        cols = most
    packed[:, -1] >>= unused  # so that some padding is zero
    if ENCODINGS[encoding].row_bytes(cols) != row:  # one byte of a 5-bit stream holds a weight, two hold three, ...
        return
    try:
        codes = unpack(packed, encoding, cols)
    except PackedFileError:
        return
    np.testing.assert_array_equal(pack(codes, encoding), packed)


@pytest.mark.parametrize(
    ("encoding", "code"),
    [
        *(("binary", code) for code in (-2, 0, 2)),
        *(("ternary", code) for code in (-2, 2)),
        *((f"int{n}", code) for n in range(3, 8) for code in (2 ** (n - 1), -(2 ** (n - 1)) - 1)),
        *((f"index{n}", 2**n) for n in range(1, 8)),
    ],
)
def test_pack_refuses_codes_of_another_grid(encoding: str, code: int) -> None:
    codes = np.ones((3, 7), GRIDS[encoding].dtype)
    codes[1, 4] = code
    with pytest.raises(PackedFileError, match=encoding):
        pack(codes, encoding)


@pytest.mark.parametrize("byte", [243, 255])
def test_unpack_refuses_ternary_bytes_that_mean_nothing(byte: int) -> None:
    with pytest.raises(PackedFileError, match="0 to 242"):
        unpack(np.array([[0, byte]], np.uint8), "ternary", 10)


@pytest.mark.parametrize("encoding", STREAMS)
@pytest.mark.parametrize("cols", range(1, 18))
def test_unpack_refuses_any_bit_of_padding(encoding: str, cols: int) -> None:
    used = cols * bits_of(encoding)
    packed = np.zeros((3, -(-used // 8)), np.uint8)
    unpack(packed, encoding, cols)
    for bit in range(used, 8 * packed.shape[1]):
        packed[1, bit // 8] = 1 << bit % 8
        with pytest.raises(PackedFileError, match=f"padding behind a row of {encoding}"):
            unpack(packed, encoding, cols)
        packed[1, bit // 8] = 0


@pytest.mark.parametrize(("cols", "byte"), [(6, 3), (7, 9), (8, 27), (9, 81)])
def test_unpack_refuses_padding_that_is_not_zero_in_base_3(cols: int, byte: int) -> None:
    packed = np.zeros((2, 2), np.uint8)
    packed[1, 1] = byte - 1
    unpack(packed, "ternary", cols)
    packed[1, 1] = byte
    with pytest.raises(PackedFileError, match="padding"):
        unpack(packed, "ternary", cols)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_unpack_refuses_rows_of_another_length(encoding: str) -> None:
    with pytest.raises(PackedFileError, match="bytes a row"):
        unpack(np.zeros((2, 9), np.uint8), encoding, 100)


def test_unknown_encodings_are_refused() -> None:
    for name in ("int2", "int9", "index0", "index9", "INT4", ""):
        with pytest.raises(PackedFileError, match=f"'{name}'.*binary, ternary"):
            pack(np.ones((1, 1), np.int8), name)
        with pytest.raises(PackedFileError, match=f"'{name}'"):
            unpack(np.ones((1, 1), np.uint8), name, 1)


def test_codes_of_the_wrong_sign_are_a_mistake_of_the_caller() -> None:
    for encoding, kind in (("int5", np.uint8), ("index5", np.int8)):
        with pytest.raises(AssertionError, match=f"{encoding} takes"):
            pack(np.ones((1, 1), kind), encoding)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_pack_refuses_numbers_that_half_precision_cannot_hold(value: float) -> None:
    with pytest.raises(PackedFileError, match="not finite"):
        pack(np.array([[1.0, value]], np.float32), "float16")


def test_pack_never_rounds() -> None:
    with pytest.raises(PackedFileError, match="exactly"):
        pack(np.array([[0.1]], np.float32), "float16")
    assert unpack(pack(np.array([[0.125]], np.float32), "float16"), "float16", 1) == 0.125


@pytest.mark.parametrize("encoding", ["ternary", "int3", "index4", "int8"])
def test_a_strided_view_packs_like_its_copy(encoding: str) -> None:
    codes = np.random.default_rng(1).integers(0, 2, (12, 30)).astype(GRIDS[encoding].dtype)
    packed = pack(codes.T[::2], encoding)
    np.testing.assert_array_equal(packed, pack(codes.T[::2].copy(), encoding))
    wide = np.zeros((len(packed), 2 * packed.shape[1]), np.uint8)
    wide[:, ::2] = packed
    np.testing.assert_array_equal(unpack(wide[:, ::2], encoding, 12), codes.T[::2])


@pytest.mark.parametrize("encoding", GRIDS)
def test_34_million_weights_take_well_under_a_second(encoding: str) -> None:
    codes = np.random.default_rng(0).choice(GRIDS[encoding], (4096, 8301))
    start = time.process_time()
    packed = pack(codes, encoding)
    unpacked = unpack(packed, encoding, 8301)
    assert time.process_time() - start < 2.0, "a guard against Python loops; measured 0.03 to 0.15 s"
    np.testing.assert_array_equal(unpacked, codes)
