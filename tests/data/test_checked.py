"""Features are loaded to be looked at once; changed files and manifests are looked at anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lowbit_k2.data import checked
from lowbit_k2.data.checked import FiniteCheck

from .conftest import ToyCorpus, lhotse


@pytest.fixture
def cuts(toy_corpus: ToyCorpus) -> lhotse.CutSet:
    return lhotse.CutSet.from_cuts(list(toy_corpus.cuts)[:8])


def look(cuts: lhotse.CutSet, folder: Path, bad: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """What a check found bad, and what it loaded for that."""
    loaded = []

    def load(cut: lhotse.cut.Cut) -> torch.Tensor:
        loaded.append(cut.id)
        return torch.full((2, 3), torch.inf if cut.id in bad else 0.0)

    check = FiniteCheck(cuts, load, folder)
    found = [cut.id for cut in cuts if not check(cut)]
    check.save()
    return found, loaded


def test_the_second_time_nothing_is_loaded(
    cuts: lhotse.CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "SAMPLE", 0.0)
    names = list(cuts.ids)
    assert look(cuts, tmp_path, (names[3],)) == ([names[3]], names)
    assert look(cuts, tmp_path) == ([names[3]], [])
    [record] = tmp_path.iterdir()
    record.write_text("{}")
    assert look(cuts, tmp_path, (names[5],)) == ([names[5]], names)


def test_a_sample_is_looked_at_again(cuts: lhotse.CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look(cuts, tmp_path)
    monkeypatch.setattr(checked, "SAMPLE", 1.0)
    names = list(cuts.ids)
    assert look(cuts, tmp_path, (names[0],)) == ([names[0]], names)
    monkeypatch.setattr(checked, "SAMPLE", 0.0)
    assert look(cuts, tmp_path) == ([names[0]], [])


def test_other_cuts_and_other_files_have_no_record(
    cuts: lhotse.CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "SAMPLE", 0.0)
    look(cuts, tmp_path)
    fewer = lhotse.CutSet.from_cuts(list(cuts)[:-1])
    assert look(fewer, tmp_path)[1] == list(fewer.ids)
    storage = Path(next(iter(cuts)).features.storage_path)
    before = storage.stat()
    try:
        os.utime(storage, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        assert look(cuts, tmp_path)[1] == list(cuts.ids)
    finally:
        os.utime(storage, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_folder_that_cannot_be_written_to(cuts: lhotse.CutSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert look(cuts, tmp_path / "file/below") == ([], list(cuts.ids))
