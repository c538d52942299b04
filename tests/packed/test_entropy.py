"""Entropies against counting by hand, and tables of them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.packed import PackedModel, PackedTensor, entropy_rows, format_entropy, read_packed, write_packed
from lowbit_k2.packed.entropy import code_entropy
from tests.packed.samples import sample_model


def by_hand(codes: np.ndarray) -> float:
    counts = Counter(codes.ravel().tolist())
    return -sum(n / codes.size * math.log2(n / codes.size) for n in counts.values())


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_entropy(kind: type) -> None:
    rng = np.random.default_rng(0)
    assert code_entropy(np.full((3, 5), 7, kind)) == 0.0
    assert code_entropy(np.arange(16).astype(kind).reshape(4, 4)) == 4.0
    codes = rng.normal(0, 20, (40, 30)).clip(-100, 100).astype(np.int8).view(kind)
    assert code_entropy(codes) == pytest.approx(by_hand(codes))


def test_rows_by_encoding_and_in_total() -> None:
    model = sample_model()
    rows = {row.encoding: row for row in entropy_rows(model)}
    for encoding in ("binary", "ternary", "int5", "index8"):
        own = [t for t in model.tensors if t.encoding == encoding]
        assert rows[encoding].num_weights == sum(t.num_weights for t in own)
        assert rows[encoding].num_bits == 8 * sum(t.data.nbytes for t in own)
        assert rows[encoding].entropy == pytest.approx(sum(t.num_weights * by_hand(t.codes) for t in own))
    assert list(rows)[-1] == "all" and "float16" not in rows
    for name in ("num_weights", "num_bits", "entropy"):
        parts = sum(getattr(row, name) for encoding, row in rows.items() if encoding != "all")
        assert getattr(rows["all"], name) == pytest.approx(parts)
    lines = format_entropy(rows.values()).splitlines()
    assert len([line for line in lines if line.startswith(("binary", "int", "index", "all"))]) == len(rows) - 1


def test_coding_comes_close_to_the_entropy(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).normal(0, 3, (300, 200)).round().clip(-15, 15).astype(np.int8)
    model = PackedModel([PackedTensor.from_codes("w", "linear", "int5", codes, np.float32(1))], {})
    write_packed(tmp_path / "a", model, compress=True)
    [row, _] = entropy_rows(read_packed(tmp_path / "a"))
    assert row.entropy < row.num_bits < 1.02 * row.entropy < 5 * codes.size
    assert entropy_rows(PackedModel([], {})) == []
