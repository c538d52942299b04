"""Damaged, foreign and lying files: one clear line each, never a crash, never a large allocation."""

from __future__ import annotations

import json
import os
import random
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lowbit_k2.packed import PackedFileError, PackedModel, PackedTensor, read_packed, write_packed
from tests.packed.samples import forge, read_index, sample_model, sign


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of about 900 bytes."""
    path = tmp_path_factory.mktemp("packed") / "small.safetensors"
    codes = np.array([[1, 0, -1, 1, 0, 1]], np.int8)
    tensors = [
        PackedTensor.from_codes("w", "encoder_linear", "ternary", codes, np.float32(0.5)),
        PackedTensor.from_values("b", "bias", "float16", np.ones(3, np.float16)),
    ]
    write_packed(path, PackedModel(tensors, {"d_model": 16}, b"tokens", "sentencepiece", {"type": "fbank"}))
    return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "sample.safetensors"
    write_packed(path, sample_model())
    return path


def check_refused(path: Path, match: str | None = None) -> str:
    """The file is refused in one printable line that names it."""
    with pytest.raises(PackedFileError, match=match) as caught:
        for tensor in read_packed(path).tensors:
            tensor.dequantize()
    text = str(caught.value)
    assert path.name[:20] in text and text.isprintable() and len(text) < 700 and caught.value.one_line
    return text


def test_every_flipped_bit_is_noticed(small: Path, tmp_path: Path) -> None:
    """All bits of the length, the checksum and what stands around it; one random bit of every other byte."""
    content, path, chance = bytearray(small.read_bytes()), tmp_path / "a", random.Random(0)
    for position in range(len(content)):
        for bit in range(8) if position < 160 else [chance.randrange(8)]:
            content[position] ^= 1 << bit
            path.write_bytes(content)
            with pytest.raises(PackedFileError):
                read_packed(path)
            content[position] ^= 1 << bit
    path.write_bytes(content)
    read_packed(path)


def test_every_truncation_is_noticed(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(small.read_bytes())
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        text = check_refused(path)
        if length > 35:
            assert "truncated" in text


@pytest.mark.parametrize("tail", [b"\0", b" ", b"{}", bytes(4096)])
def test_trailing_bytes_are_noticed(small: Path, tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "a").write_bytes(small.read_bytes() + tail)
    check_refused(tmp_path / "a", f"{len(tail)} bytes lie behind its end")


def test_damage_anywhere_in_a_large_file_is_noticed(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "large"
    codes = rng.integers(-1, 2, (500, 5000), dtype=np.int8)
    write_packed(path, PackedModel([PackedTensor.from_codes("w", "x", "ternary", codes, np.float32(1))], {}))
    content, chance = bytearray(path.read_bytes()), random.Random(0)
    for _ in range(40):
        position, value = chance.randrange(len(content)), chance.randrange(1, 256)
        content[position] ^= value
        path.write_bytes(content)
        with pytest.raises(PackedFileError):
            read_packed(path)
        content[position] ^= value
    path.write_bytes(content)
    np.testing.assert_array_equal(read_packed(path).tensors[0].codes, codes)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_rewritten_stretches_are_noticed(small: Path, data: st.DataObject) -> None:
    content = small.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    stretch = data.draw(st.binary(max_size=80))
    changed = content[:start] + stretch + content[data.draw(st.integers(start, len(content))) :]
    path = small.with_name("changed")
    path.write_bytes(changed)
    if changed == content:
        read_packed(path)
    else:
        check_refused(path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_no_packed_file(small: Path, content: bytes) -> None:
    path = small.with_name("noise")
    for prefix in (b"", struct.pack("<Q", len(content)), struct.pack("<Q", len(content) + 1) + b"{"):
        path.write_bytes(prefix + content)
        check_refused(path)


def test_missing_empty_and_odd_paths(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    check_refused(tmp_path / "missing", "missing does not exist")
    check_refused(tmp_path / "empty", "is empty")
    check_refused(tmp_path, "is not a file")
    check_refused(tmp_path / ("x" * 300), "cannot be read")


def test_foreign_files(small: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": np.ones((3, 3), np.float32)}, foreign)
    check_refused(foreign, "is a safetensors file, but no packed model of lowbit_k2")
    save_file({f"layer.{i}.weight": np.ones(3, np.float32) for i in range(99)}, foreign, {"format": "pt"})
    check_refused(foreign, "is a safetensors file, but no packed model of lowbit_k2")
    save_file(load_file(small), foreign, {"format": "lowbit_k2 packed", "version": "1"})
    check_refused(foreign, "was rewritten by another program")
    text = tmp_path / "text"
    text.write_text("# a README\nof many lines\n" * 9)
    check_refused(text, "is not a safetensors file")


@pytest.mark.parametrize("version", ["4", "17", "99999"])
def test_future_versions(sample: Path, tmp_path: Path, version: str) -> None:
    path = forge(sample, tmp_path / "a", header={"version": version})
    check_refused(path, f"format version {version}, this program reads versions 1 to 3: update lowbit_k2")


@pytest.mark.parametrize("version", ["", "1.0", "-1", "one", 1, None, "9" * 50])
def test_odd_versions(sample: Path, tmp_path: Path, version: Any) -> None:
    check_refused(forge(sample, tmp_path / "a", header={"version": version}), "damaged header")


def test_a_forged_copy_without_changes_is_read(sample: Path, tmp_path: Path) -> None:
    """So that the refusals below are those of the change, not of the forgery."""
    copy = forge(sample, tmp_path / "a", listing=read_index(sample))
    assert read_packed(copy).tokens == sample_model().tokens


# (how the entry of tensor `binary.tensor` is changed, what the refusal says)
LIES = [
    ({"encoding": "int9"}, "tensor binary.tensor: unknown encoding 'int9'"),
    ({"encoding": "int5"}, "larger than what is left|belong to no tensor|positive|padding"),
    ({"encoding": None}, "unknown encoding None"),
    ({"encoding": "float32"}, "larger than what is left|belong to no tensor|positive|has no steps"),
    ({"name": 5}, "is no text"),
    ({"name": "ternary.tensor"}, "ternary.tensor is there twice"),
    ({"name": "a\nb\x1b[31m" + "x" * 9999, "shape": []}, r"tensor a b \[31mxxx"),
    ({"shape": []}, "codes need at least one dimension"),
    ({"shape": [6, 7, 12]}, "larger|positive|padding|belong"),
    ({"shape": [6, 7, 10]}, "larger|positive|padding|belong"),
    ({"shape": [462]}, "larger|positive|padding|belong"),
    ({"shape": [1 << 40, 1 << 40]}, "larger than what is left"),
    ({"shape": [10**4000]}, "tensor binary.tensor: "),
    ({"shape": [6, 77, 0]}, "is no shape"),
    ({"shape": [6, -7, -11]}, "is no shape"),
    ({"shape": [6.0, 7, 11]}, "is no shape"),
    ({"shape": [True, 7, 11]}, "is no shape"),
    ({"shape": [1] * 99}, "is no shape"),
    ({"shape": [1] * 99999}, "tensor binary.tensor: "),
    ({"shape": "6"}, "is no shape"),
    ({"shape": None}, "is no shape"),
    ({"steps": "row"}, "granularity"),
    ({"steps": ["channel"]}, "granularity"),
    ({"steps": "channel"}, "larger|positive"),
    ({"table": [1.0]}, "no number of entries"),
    ({"table": []}, "table"),
    ({"table": 3}, "table"),
    ({"table": -1}, "table"),
    ({"table": 1 << 60}, "table"),
    ({"same_as": "ternary.tensor"}, "same_as|binary.tensor"),
    ({"input_bits": 17}, "input"),
    ({"input_bits": 8.0}, "input"),
    ({"table": ["a"]}, "no number of entries"),
    ({"table": [10**999]}, "tensor binary.tensor: "),
    ({"table": [float("nan"), 1.0]}, "no number of entries"),
    ({"zero_point": 0.5}, "no zero point"),
    ({"zero_point": 10**99}, "no zero point"),
]


@pytest.mark.parametrize(("change", "message"), LIES, ids=[str(change)[:40] for change, _ in LIES])
def test_lies_in_the_index(sample: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    index = read_index(sample)
    index["tensors"][0].update(change)
    check_refused(forge(sample, tmp_path / "a", listing=index), message)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "no JSON object"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b'{"a":' * 100_000, "no JSON object"),
        (b"\xff\xfe", "no JSON object"),
        (b"1" * 10_000, "no JSON object"),
        ({}, "list of tensors"),
        ({"tensors": {}}, "list of tensors"),
        ({"tensors": []}, "belong to no tensor"),
        ({"tensors": [[]]}, "describes no tensor"),
        ({"tensors": [{}]}, "is no text"),
    ],
)
def test_odd_indexes(sample: Path, tmp_path: Path, index: Any, message: str) -> None:
    check_refused(forge(sample, tmp_path / "a", listing=index), message)


@pytest.mark.parametrize("key", ["model", "features", "tokens_kind", "extra"])
def test_incomplete_indexes(sample: Path, tmp_path: Path, key: str) -> None:
    index = read_index(sample)
    del index[key]
    check_refused(forge(sample, tmp_path / "a", listing=index), "lacks model")
    check_refused(forge(sample, tmp_path / "a", listing={**index, key: 7}), "lacks model")


@pytest.mark.parametrize("section", ["index", "tokens"])
def test_streams_that_are_none_or_explode(sample: Path, tmp_path: Path, section: str) -> None:
    bomb = zlib.compress(bytes(80 << 20))
    for content in (b"", b"not zlib", zlib.compress(b"{}")[:-1], zlib.compress(b"{}") + b"more"):
        check_refused(forge(sample, tmp_path / "a", **{section: content}), section)
    path = forge(sample, tmp_path / "a", **{section: bomb})
    del bomb
    tracemalloc.start()
    try:
        check_refused(path, f"{section} is no single zlib stream")
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("section", ["float32", "float16", "codes"])
def test_sections_of_another_size(sample: Path, tmp_path: Path, section: str) -> None:
    sections = {"float32": bytes(8), "float16": bytes(8), "codes": bytes(8)}
    check_refused(forge(sample, tmp_path / "a", **{section: sections[section]}), "larger|positive")


def test_bytes_that_are_no_codes(small: Path, tmp_path: Path) -> None:
    check_refused(forge(small, tmp_path / "a", codes=b"\xf3\x00"), "tensor w: byte 243")
    check_refused(forge(small, tmp_path / "a", codes=b"\x00\x03"), "tensor w: padding")


def test_steps_that_are_no_steps(small: Path, tmp_path: Path) -> None:
    for step in (0.0, -1.0, float("nan"), float("inf")):
        check_refused(forge(small, tmp_path / "a", float32=struct.pack("<f", step)), "tensor w: every step")


def make_header(sections: dict[str, Any], length: int | None = None, data: bytes = b"") -> bytes:
    metadata = {"sha256": "0" * 64, "format": "lowbit_k2 packed", "version": "1"}
    text = json.dumps({"__metadata__": metadata, **sections}, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"codes": None},
        {name: {"dtype": "U8", "shape": [1 << 50], "data_offsets": [0, 1 << 50]} for name in ("index", "codes")},
        {
            name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
            for name in ("float32", "float16", "codes", "index", "tokens")
        },
        {
            name: {"dtype": dtype, "shape": [0], "data_offsets": [9, 9]}
            for name, dtype in zip(
                ("float32", "float16", "codes", "index", "tokens"), ("F32", "F16", "U8", "U8", "U8"), strict=True
            )
        },
        {"float32": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}},
        {"float32": {"dtype": "F32", "shape": [1], "data_offsets": 4}},
        {"float32": []},
    ],
)
def test_headers_that_lie_about_sections(tmp_path: Path, sections: dict[str, Any]) -> None:
    check_refused(sign(make_header(sections, data=bytes(16)), tmp_path / "a"), "sections float32")


@pytest.mark.parametrize("length", [0, 1, 7, 1 << 31, (1 << 63) - 1, (1 << 64) - 1])
def test_headers_that_lie_about_their_length(tmp_path: Path, length: int) -> None:
    check_refused(sign(make_header({}, length), tmp_path / "a"), "header")


def test_a_huge_header_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(struct.pack("<Q", 8 << 20) + b"{" + b"[" * (8 << 20))
    check_refused(tmp_path / "a", "no packed model")
    deep = b'{"a":' * 700
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(deep)) + deep)
    check_refused(tmp_path / "a", "damaged header")
