"""Times of a packed HuBERT's matrices, and files that have none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowbit_k2.asr import packed_matrices
from lowbit_k2.asr.packed_matrices import time_matrices
from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.errors import UserError
from lowbit_k2.export import save_packed
from lowbit_k2.quant import DEFAULT_RULES, QuantConfig, quantize_model
from lowbit_k2.runtime import PackedMatrix
from lowbit_k2.runtime.native import library
from tests.models.hubert_samples import BASE, random_model, waveforms


@pytest.fixture
def native() -> None:
    if library() is None:
        pytest.skip("no native library: no C++ compiler, or LOWBIT_K2_ISA=numpy")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    model = random_model(BASE)
    rules = (*HubertConfig.rules, *DEFAULT_RULES)
    quantize_model(model, QuantConfig.preset("bit-la", precisions=(1,), rules=rules))
    with torch.no_grad():
        model(waveforms())
    save_packed(model, tmp_path / "packed")
    return tmp_path / "packed"


def test_all_matrices_of_the_transformer_are_timed(native: None, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str, int]] = []
    matmul = PackedMatrix.matmul

    def watched(self: PackedMatrix, x, mode: str):
        seen.append((self.name, mode, len(x)))
        return matmul(self, x, mode)

    monkeypatch.setattr(PackedMatrix, "matmul", watched)
    found = time_matrices(packed, frames=40, mode="a8", turns=2)
    assert found.packed > 0 and found.torch > 0
    names = {f"encoder.layers.{i}.{part}.weight" for i in range(BASE.num_layers)
             for part in ("ff.w1", "ff.w2", *(f"attention.{p}" for p in ("query", "key", "value", "out")))}  # fmt: skip
    assert {name for name, _, _ in seen} == names and len(seen) == 3 * len(names)
    assert {(mode, rows) for _, mode, rows in seen} == {("a8", 40)}


def test_a_file_without_a_transformer(native: None, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    quantize_model(model, QuantConfig.preset("lossless16", precisions=(1,)))
    save_packed(model, tmp_path / "packed")
    with pytest.raises(UserError, match="packed has no Transformer of a HuBERT"):
        time_matrices(tmp_path / "packed", 10, "a8")


def test_without_a_compiler(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_matrices, "library", lambda: None)
    with pytest.raises(UserError, match="install g\\+\\+"):
        time_matrices(packed, 10, "a8")
