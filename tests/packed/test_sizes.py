"""Size tables: every byte of the file once, and the ratio of two files on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.packed import PackedFileError, PackedModel, PackedTensor, read_packed, size_table, write_packed
from tests.packed.samples import sample_model


@pytest.fixture()
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A packed file and its float32 version."""
    model = sample_model()
    floats = [
        PackedTensor.from_values(t.name, t.role, "float32", t.dequantize(), aliases=t.aliases) for t in model.tensors
    ]
    write_packed(tmp_path / "packed", model)
    write_packed(tmp_path / "float", replace(model, tensors=floats))
    return tmp_path / "packed", tmp_path / "float"


def test_the_rows_add_up_to_the_file(pair: tuple[Path, Path]) -> None:
    table = size_table(read_packed(pair[0]))
    parts = table.file.header + table.file.index + table.file.tokens
    assert sum(row.num_bytes for row in table.rows) + parts == table.file.total == pair[0].stat().st_size
    assert sum(row.num_tensors for row in table.rows) == len(sample_model().tensors)
    assert table.num_weights == sum(t.num_weights for t in sample_model().tensors)
    assert table.ratio is None and "ratio" not in str(table)


def test_bytes_of_an_encoding_by_hand(pair: tuple[Path, Path]) -> None:
    rows = {(row.role, row.encoding): row for row in size_table(read_packed(pair[0])).rows}
    steps = (1 + 6 + 12) * 4
    assert rows["encoder_linear", "binary"].num_bytes == 3 * 6 * 10 + steps  # 77 columns: 10 bytes a row
    assert rows["encoder_linear", "ternary"].num_bytes == 3 * 6 * 16 + steps
    assert rows["encoder_linear", "int4"].num_bytes == 3 * 6 * 39 + steps
    assert rows["encoder_linear", "int8"].num_bytes == 3 * 6 * 77 + steps
    assert rows["norm", "float16"].num_bytes == 26 and rows["norm", "float16"].bits_per_weight == 16
    assert rows["bias", "float32"].num_bytes == 44


def test_the_ratio_is_that_of_the_files(pair: tuple[Path, Path]) -> None:
    table = size_table(read_packed(pair[0]), read_packed(pair[1]))
    assert table.ratio == pair[1].stat().st_size / pair[0].stat().st_size
    assert sum(row.float_bytes for row in table.rows) == 4 * table.num_weights
    text = str(table)
    assert f"{pair[0].stat().st_size:,}" in text and f"{table.ratio:.2f}x" in text.splitlines()[-1]
    assert table.to_dict()["ratio"] == table.ratio


def test_a_reference_of_another_model_is_refused(pair: tuple[Path, Path]) -> None:
    packed, reference = read_packed(pair[0]), read_packed(pair[1])
    with pytest.raises(PackedFileError, match="not float32 throughout"):
        size_table(packed, packed)
    with pytest.raises(PackedFileError, match="other tensors"):
        size_table(packed, replace(reference, tensors=reference.tensors[1:]))


def test_a_file_without_tensors(tmp_path: Path) -> None:
    write_packed(tmp_path / "a", PackedModel([], {}))
    assert size_table(read_packed(tmp_path / "a")).file.total == (tmp_path / "a").stat().st_size
    assert "file" in str(size_table(read_packed(tmp_path / "a")))


def test_roles_stay_together(tmp_path: Path) -> None:
    def make(i: int) -> PackedTensor:
        kind = "float16" if i % 2 else "float32"
        return PackedTensor.from_values(str(i), "ab"[i // 2 % 2], kind, np.ones(2, np.float16))

    write_packed(tmp_path / "a", PackedModel([make(i) for i in range(8)], {}))
    assert [row.role for row in size_table(read_packed(tmp_path / "a")).rows] == ["a", "a", "b", "b"]
