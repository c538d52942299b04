"""Packed files: what is written is read, by our reader, by safetensors, and by a reader made from the document."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors

from lowbit_k2.core.encodings import ENCODINGS, tensor_bytes
from lowbit_k2.packed import PackedFileError, PackedModel, PackedTensor, read_packed, write_packed
from tests.packed.mini_reader import mini_read
from tests.packed.samples import GRIDS, STEP_SHAPES, read_index, sample_model, sample_tensors


@pytest.fixture()
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_packed(path, sample_model())
    return path


def reference_weights(codes: np.ndarray, step: np.ndarray, granularity: str, table=None) -> np.ndarray:
    """codes * step, or table[codes] * step, in float32, one weight at a time."""
    flat = codes.reshape(len(codes), -1)
    out = np.empty(flat.shape, np.float32)
    for r, k in np.ndindex(*flat.shape):
        s = {
            "tensor": step,
            "channel": step[r] if step.ndim else 0,
            "block64": step[r, k // 64] if step.ndim > 1 else 0,
        }
        number = flat[r, k] if table is None else table[flat[r, k]]
        out[r, k] = np.float32(number) * np.float32(s[granularity])
    return out.reshape(codes.shape)


def test_everything_comes_back(packed: Path) -> None:
    written, read = sample_model(), read_packed(packed)
    assert [t.name for t in read.tensors] == [t.name for t in written.tensors]
    for a, b in zip(written.tensors, read.tensors, strict=True):
        assert (a.role, a.encoding, a.shape, a.granularity) == (b.role, b.encoding, b.shape, b.granularity)
        assert a.dequantize().tobytes() == b.dequantize().tobytes() and b.dequantize().shape == a.shape
        assert (a.aliases, a.input_bits) == (b.aliases, b.input_bits)
        if not a.is_float:
            np.testing.assert_array_equal(a.codes, b.codes)
            assert a.step.tobytes() == b.step.tobytes()
    for field in ("model_config", "tokens", "tokens_kind", "features", "extra"):
        assert getattr(read, field) == getattr(written, field)


@pytest.mark.parametrize("granularity", STEP_SHAPES)
@pytest.mark.parametrize("encoding", GRIDS)
def test_weights_are_codes_times_steps(encoding: str, granularity: str) -> None:
    tensor = next(t for t in sample_tensors() if t.name == f"{encoding}.{granularity}")
    expected = reference_weights(tensor.codes, tensor.step, granularity, tensor.table)
    assert tensor.dequantize().tobytes() == expected.tobytes()
    assert tensor.dequantize().dtype == np.float32


def test_the_document_is_enough_to_read_a_file(packed: Path) -> None:
    model = sample_model()
    index, tokens, weights = mini_read(packed)
    assert tokens == model.tokens and index["model"] == model.model_config and index["extra"] == model.extra
    assert set(weights) == {name for t in model.tensors for name in t.names}
    for tensor in model.tensors:
        for name in tensor.names:
            assert np.array(weights[name], np.float32).tobytes() == tensor.dequantize().tobytes()


def test_tables_and_zero_points(tmp_path: Path) -> None:
    codes = np.arange(6, dtype=np.int8).reshape(2, 3)
    step = np.float32(0.3)
    numbers = [-1.0, -0.1, 0.0, 0.1, 0.2, 1.0]
    table = PackedTensor.from_codes("t", "x", "index3", codes.astype(np.uint8), step, table=numbers)
    shifted = PackedTensor.from_codes("z", "x", "int8", codes, step, zero_point=2)
    path = tmp_path / "a"
    write_packed(path, PackedModel([table, shifted], {}))
    entries = np.array([-1.0, -0.1, 0.0, 0.1, 0.2, 1.0], np.float32).reshape(2, 3)
    read = {t.name: t.dequantize() for t in read_packed(path).tensors}
    np.testing.assert_array_equal(read["t"], entries * step)
    np.testing.assert_array_equal(read["z"], (codes - 2).astype(np.float32) * step)
    assert {n: np.array(w, np.float32).tobytes() for n, w in mini_read(path)[2].items()} == {
        n: w.tobytes() for n, w in read.items()
    }
    with pytest.raises(PackedFileError, match="table of 2 entries"):
        PackedTensor.from_codes("t", "x", "index3", codes.astype(np.uint8), step, table=[1.0, 2.0])


def test_a_file_of_version_1_gives_the_same_weights() -> None:
    """version1.safetensors was written by the release before version 2, from these codes, steps and tables."""
    path = Path(__file__).with_name("version1.safetensors")
    assert b'"version":"1"' in path.read_bytes()[:200]
    weights = {tensor.name: tensor.dequantize() for tensor in read_packed(path).tensors}
    assert weights and {n: w.tobytes() for n, w in weights.items()} == {
        n: np.array(w, np.float32).tobytes() for n, w in mini_read(path)[2].items()
    }
    assert mini_read(path)[0].keys() == {"model", "features", "tokens_kind", "extra", "tensors"}


@pytest.mark.parametrize("encoding", GRIDS)
def test_bytes_of_a_tensor_are_those_that_reports_estimate(encoding: str) -> None:
    for granularity in STEP_SHAPES:
        tensor = next(t for t in sample_tensors() if t.name == f"{encoding}.{granularity}")
        entries = 0 if tensor.table is None else len(tensor.table)
        assert tensor.nbytes == tensor_bytes(tensor.shape, ENCODINGS[encoding], granularity, entries)


def test_safetensors_reads_the_file(packed: Path) -> None:
    with safetensors.safe_open(packed, "np") as file:
        assert set(file.keys()) == {"float32", "float16", "codes", "index", "tokens"}
        assert file.metadata()["format"] == "lowbit_k2 packed" and file.metadata()["version"] == "2"
        codes = np.concatenate([t.data.ravel() for t in sample_model().tensors if not t.is_float])
        np.testing.assert_array_equal(file.get_tensor("codes"), codes)
        assert file.get_tensor("float16").dtype == np.float16


def test_sizes_are_those_on_disk(packed: Path) -> None:
    model = read_packed(packed)
    parts = model.sizes.header + model.sizes.index + model.sizes.tokens
    assert parts + sum(t.nbytes for t in model.tensors) == model.sizes.total == packed.stat().st_size


def test_equal_models_give_equal_files(packed: Path, tmp_path: Path) -> None:
    shuffled = replace(sample_model(), extra=dict(reversed(sample_model().extra.items())))
    write_packed(tmp_path / "again", shuffled)
    assert (tmp_path / "again").read_bytes() == packed.read_bytes()
    write_packed(tmp_path / "third", read_packed(packed))
    assert (tmp_path / "third").read_bytes() == packed.read_bytes()


def test_data_is_mapped_and_read_only(packed: Path) -> None:
    for tensor in read_packed(packed).tensors:
        assert not tensor.data.flags.owndata and not tensor.data.flags.writeable
        assert not tensor.is_float or tensor.data.ctypes.data % tensor.data.itemsize == 0


def test_a_model_outlives_its_file(packed: Path) -> None:
    model = read_packed(packed)
    write_packed(packed, sample_model(seed=1))  # replaces, never overwrites
    assert model.tensors[0].codes.tobytes() == sample_model().tensors[0].codes.tobytes()
    packed.unlink()
    assert model.tensors[-1].dequantize() == np.float32(0.1)


def test_overhead_of_a_small_model(tmp_path: Path) -> None:
    """About 300 kB in 173 tensors, named as in a Conformer of four layers: under 1% besides weights."""
    rng = np.random.default_rng(0)
    tensors = []
    for i in range(173):
        name = f"encoder.layers.{i // 40}.block{i % 40}.weight"
        if i % 3:
            tensors.append(PackedTensor.from_values(name, "norm", "float16", rng.normal(size=144).astype(np.float16)))
        else:
            codes = rng.choice(GRIDS["binary"], (144, 260)).astype(np.int8)
            step = np.float32(rng.uniform())
            tensors.append(PackedTensor.from_codes(name, "encoder_linear", "binary", codes, step))
    write_packed(tmp_path / "a", PackedModel(tensors, {"d_model": 144}))
    sizes = read_packed(tmp_path / "a").sizes
    assert 250_000 < sizes.total < 350_000
    assert sizes.header + sizes.index < 0.01 * sizes.total


def test_the_whole_file_or_none(tmp_path: Path) -> None:
    bad = replace(sample_model(), extra={"when": object()})
    with pytest.raises(PackedFileError, match="JSON"):
        write_packed(tmp_path / "a", bad)
    with pytest.raises(PackedFileError, match="JSON"):
        write_packed(tmp_path / "a", replace(bad, extra={"loss": float("nan")}))
    (tmp_path / "folder").mkdir()
    with pytest.raises(PackedFileError, match="cannot be written"):
        write_packed(tmp_path / "folder", sample_model())
    assert sorted(os.listdir(tmp_path)) == ["folder"] and not os.listdir(tmp_path / "folder")


def test_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_packed(tmp_path / "deep/er/a", sample_model())
    finally:
        os.umask(old)
    assert (tmp_path / "deep/er/a").stat().st_mode & 0o777 == 0o640


def _read_in_child(path: str) -> bytes:
    return read_packed(path).tensors[0].codes.tobytes()


def test_several_processes_share_a_file(packed: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read_in_child, (str(packed),)) == read_packed(packed).tensors[0].codes.tobytes()


STEP = np.float32(1.0)
ONES = np.ones((2, 3), np.int8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedTensor.from_codes("w", "x", "ternary", ONES * 2, STEP), "tensor w: codes"),
        (lambda: PackedTensor.from_codes("w", "x", "int4", ONES, -STEP), "positive"),
        (lambda: PackedTensor.from_codes("w", "x", "int4", ONES, STEP * 0), "positive"),
        (lambda: PackedTensor.from_codes("w", "x", "int4", ONES, STEP * np.nan), "positive"),
        (lambda: PackedTensor.from_codes("w", "x", "int4", ONES, np.ones(3), "channel"), r"\(3,\), expected \(2,\)"),
        (lambda: PackedTensor.from_codes("w", "x", "int4", ONES, STEP, "row"), "granularity 'row'"),
        (lambda: PackedTensor.from_codes("w", "x", "int9", ONES, STEP), "encoding 'int9'"),
        (lambda: PackedTensor.from_codes("w", "x", "int4", ONES[:0], STEP), "cannot be packed"),
        (lambda: PackedTensor.from_codes("w", "x", "int4", ONES[0, 0], STEP), "cannot be packed"),
        (lambda: PackedTensor.from_codes("w", "x", "int4", ONES, STEP, table=[]), "table"),
        (lambda: PackedTensor.from_codes("w", "x", "int4", ONES, STEP, table=[1.0, 2.0]), "table"),
        (lambda: PackedTensor.from_codes("w", "x", "index2", ONES.astype(np.uint8), STEP), "table"),
        (lambda: PackedTensor.from_codes("w", "x", "index1", ONES.astype(np.uint8), STEP, table=[1.0] * 3), "table"),
        (lambda: PackedTensor.from_codes("w", "x", "index1", ONES.astype(np.uint8), STEP, table=[1, np.inf]), "finite"),
        (lambda: PackedTensor.from_codes("w", "x", "int4", ONES, STEP, input_bits=1), "input"),
        (
            lambda: PackedModel([PackedTensor.from_codes("w", "x", "int4", ONES, STEP, aliases=("w",))], {}),
            "w is there twice",
        ),
        (lambda: PackedTensor.from_values("w", "x", "float16", np.array([0.1], np.float32)), "tensor w: .*exactly"),
        (lambda: PackedTensor.from_values("w", "x", "float32", np.array([np.nan], np.float32)), "not finite"),
        (lambda: PackedTensor.from_values("w", "x", "float32", np.zeros(0, np.float32)), "empty"),
        (lambda: PackedModel([*sample_tensors(), sample_tensors()[0]], {}), "binary.tensor is there twice"),
    ],
)
def test_wrong_tensors_are_refused_before_they_are_written(make, message: str) -> None:
    with pytest.raises(PackedFileError, match=message):
        make()


def test_the_index_is_what_the_document_says(packed: Path) -> None:
    index = read_index(packed)
    assert set(index) == {"model", "features", "tokens_kind", "extra", "tensors"}
    first = {"name": "binary.tensor", "role": "encoder_linear", "encoding": "binary", "shape": [6, 7, 11]}
    assert index["tensors"][0] == {**first, "steps": "tensor"}
    header = packed.read_bytes()[8:].split(b"}}", 1)[0]
    assert json.loads(header + b"}}")["__metadata__"]["format"] == "lowbit_k2 packed"
    assert packed.read_bytes()[8:35] == b'{"__metadata__":{"sha256":"'
