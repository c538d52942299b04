"""Coded codes: what they save, that they come back, and what a reader refuses."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit_k2.core.encodings import ENCODINGS
from lowbit_k2.packed import PackedFileError, PackedModel, PackedTensor, read_packed, write_packed
from lowbit_k2.packed.coding import carrier, expand, shrink
from tests.packed.mini_reader import mini_read
from tests.packed.samples import GRIDS, TABLE_SIZES, forge, read_index, sample_model

COLS = 61  # fills no byte, whatever the encoding


def peaked(encoding: str, rows: int = 90, cols: int = COLS, seed: int = 0) -> PackedTensor:
    """A tensor most of whose codes are one or two of the grid."""
    rng = np.random.default_rng(seed)
    grid = GRIDS[encoding][: TABLE_SIZES.get(encoding)]
    places = np.clip(rng.normal(len(grid) / 2, 0.02 * len(grid), (rows, cols)).round(), 0, len(grid) - 1)
    if len(grid) < 4:
        places = rng.choice(len(grid), (rows, cols), p=[0.97, *[0.03 / (len(grid) - 1)] * (len(grid) - 1)])
    table = None if encoding not in TABLE_SIZES else rng.normal(size=len(grid))
    codes = grid[places.astype(int)]
    return PackedTensor.from_codes(encoding, "linear", encoding, codes, np.float32(0.5), table=table)


def flat(encoding: str) -> PackedTensor:
    """One whose codes are all equally frequent: nothing to gain."""
    codes = np.random.default_rng(1).choice(GRIDS[encoding][: TABLE_SIZES.get(encoding)], (90, COLS))
    table = None if encoding not in TABLE_SIZES else np.arange(TABLE_SIZES[encoding])
    return PackedTensor.from_codes(f"flat.{encoding}", "linear", encoding, codes, np.float32(1), table=table)


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Peaked and flat tensors of all encodings, and floats."""
    path = tmp_path_factory.mktemp("coded") / "coded.safetensors"
    tensors = [make(encoding) for encoding in GRIDS for make in (peaked, flat)]
    tensors[0] = replace(tensors[0], aliases=("tied",))
    tensors.append(PackedTensor.from_values("single", "bias", "float32", np.ones((2, 5), np.float32)))
    write_packed(path, replace(sample_model(), tensors=tensors), compress=True)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coded") / "small.safetensors"
    codes = peaked("int5", 9, 40).codes.copy()
    codes[3, 4] = 10
    write_packed(path, PackedModel([PackedTensor.from_codes("w", "x", "int5", codes, np.float32(1))], {}), True)
    assert read_index(path)["tensors"][0]["coded"]
    return path


def check_refused(path: Path, match: str | None = None) -> None:
    with pytest.raises(PackedFileError, match=match) as caught:
        for tensor in read_packed(path).tensors:
            tensor.dequantize()
    assert str(caught.value).isprintable() and caught.value.one_line


@pytest.mark.parametrize("encoding", GRIDS)
def test_rows_come_back(encoding: str) -> None:
    tensor, kind = peaked(encoding), ENCODINGS[encoding]
    stream = shrink(tensor.data, kind, COLS)
    assert stream is not None and len(stream) < 0.9 * tensor.data.nbytes
    data = expand(np.frombuffer(stream, np.uint8), kind, (90, COLS))
    np.testing.assert_array_equal(data, tensor.data)
    assert not data.flags.writeable
    assert shrink(flat(encoding).data, kind, COLS) is None
    assert zlib.decompress(stream) == b"".join(
        row.tobytes() for row in (tensor.data if carrier(kind) is kind else tensor.codes.view(np.uint8))
    )


def test_a_whole_file(coded: Path, tmp_path: Path) -> None:
    read, index = read_packed(coded), read_index(coded)
    entries = {entry["name"]: entry for entry in index["tensors"]}
    for encoding in GRIDS:
        assert "coded" in entries[encoding] and "coded" not in entries[f"flat.{encoding}"]
    for tensor in read.tensors:
        if tensor.is_float:
            continue
        own = flat(tensor.encoding) if tensor.name.startswith("flat") else peaked(tensor.encoding)
        np.testing.assert_array_equal(tensor.codes, own.codes)
        assert tensor.dequantize().tobytes() == own.dequantize().tobytes()
        mapped = not tensor.data.flags.owndata and tensor.data.base is not None
        assert tensor.coded_bytes is not None or mapped  # what is not coded stays in the file
        assert not tensor.data.flags.writeable
    parts = read.sizes.header + read.sizes.index + read.sizes.tokens
    assert parts + sum(t.nbytes for t in read.tensors) == read.sizes.total == coded.stat().st_size
    again, plain = tmp_path / "again", tmp_path / "plain"
    write_packed(again, read, compress=True)
    assert again.read_bytes() == coded.read_bytes()
    write_packed(plain, read)
    assert b'"version":"2"' in plain.read_bytes()[:200] and b'"version":"3"' in coded.read_bytes()[:200]
    assert plain.stat().st_size > coded.stat().st_size
    assert all(tensor.coded_bytes is None for tensor in read_packed(plain).tensors)


def test_the_document_is_enough_to_read_a_file(coded: Path) -> None:
    weights = mini_read(coded)[2]
    for tensor in read_packed(coded).tensors:
        for name in tensor.names:
            assert np.array(weights[name], np.float32).tobytes() == tensor.dequantize().tobytes()


def test_where_nothing_is_gained_the_version_stays(tmp_path: Path) -> None:
    model = PackedModel([flat("int4"), flat("index5")], {})
    for name, compress in (("a", True), ("b", False)):
        write_packed(tmp_path / name, model, compress)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_flipped_byte_is_noticed(small: Path, tmp_path: Path) -> None:
    content, chance = bytearray(small.read_bytes()), random.Random(0)
    for position in range(len(content)):
        value = chance.randrange(1, 256)
        content[position] ^= value
        (tmp_path / "a").write_bytes(content)
        check_refused(tmp_path / "a")
        content[position] ^= value


def section_of(path: Path) -> bytes:
    """The codes of a file with one tensor."""
    tensor = read_packed(path).tensors[0]
    stream = shrink(tensor.data, ENCODINGS[tensor.encoding], tensor.shape[1])
    assert stream is not None and len(stream) == tensor.coded_bytes
    return stream


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_forged_streams_give_a_line_or_the_weights(small: Path, data: st.DataObject) -> None:
    """With the right file checksum, and zlib's own: streams that differ may say the same, and Adler-32 misses a few."""
    stream = bytearray(section_of(small))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    path = forge(small, small.with_name("forged"), codes=bytes(stream))
    try:
        codes = read_packed(path).tensors[0].codes
    except PackedFileError:
        check_refused(path)  # in one line
    else:
        same = zlib.decompress(bytes(stream)) == zlib.decompress(section_of(small))
        assert (codes == read_packed(small).tensors[0].codes).all() == same


CHANGES = [
    ({"coded": 0}, "0 is no number of coded bytes"),
    ({"coded": -5}, "is no number of coded bytes"),
    ({"coded": True}, "is no number of coded bytes"),
    ({"coded": "9"}, "is no number of coded bytes"),
    ({"coded": 1 << 62}, "larger than what is left of section codes"),
    ({"coded": 10}, "cannot stand for|no single zlib stream|belong to no tensor"),
    ({"coded": None}, "larger than what is left|belong to no tensor|padding"),
    ({"shape": [9, 41]}, "no single zlib stream of 369 bytes"),
    ({"shape": [9, 39]}, "no single zlib stream of 351 bytes"),
    ({"shape": [1 << 30, 1 << 30]}, "coded bytes cannot stand for 1073741824 rows"),
    ({"encoding": "int3"}, "do not fit the encoding int3|positive|table"),
    ({"encoding": "int4"}, "no single zlib stream"),
    ({"encoding": "ternary"}, "no single zlib stream"),
    ({"encoding": "float32"}, "larger|has no steps"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[str(change) for change, _ in CHANGES])
def test_lies_in_the_index(small: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    index = read_index(small)
    index["tensors"][0].update(change)
    check_refused(forge(small, tmp_path / "a", listing=index), message)


@pytest.mark.parametrize("head", ["1", "2"])
def test_older_versions_have_no_coded_codes(small: Path, tmp_path: Path, head: str) -> None:
    check_refused(forge(small, tmp_path / "a", header={"version": head}))


def test_streams_that_explode(small: Path, tmp_path: Path) -> None:
    """80 MB of zeros, by matches, in 80 kB: refused before it is inflated, whatever shape the index claims."""
    bomb = zlib.compress(bytes(80 << 20), 9)
    index = read_index(small)
    for shape in ([9, 40], [1, 80 << 20], [80 << 10, 1 << 10], [1, 8 * len(bomb)]):
        index["tensors"][0].update({"coded": len(bomb), "shape": shape})
        path = forge(small, tmp_path / "a", listing=index, codes=bomb)
        tracemalloc.start()
        try:
            check_refused(path, "cannot stand for|no single zlib stream")
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()


def test_streams_that_are_none(small: Path, tmp_path: Path) -> None:
    good, index = section_of(small), read_index(small)
    for stream in (b"not a stream" * 30, good[:-1], good + b"more", zlib.compress(b"") + bytes(200)):
        index["tensors"][0]["coded"] = len(stream)
        check_refused(forge(small, tmp_path / "a", listing=index, codes=stream), "coded bytes")
