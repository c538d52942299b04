from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from lowbit_k2.data.manifests import load_cuts, load_noise, read_cuts
from lowbit_k2.errors import UserError

from .conftest import ToyCorpus


def test_one_and_several_splits(toy_corpus: ToyCorpus) -> None:
    assert len(load_cuts(toy_corpus.fbank_dir, "toy", "train")) == 30
    both = load_cuts(toy_corpus.fbank_dir, "toy", "train dev")
    assert len(both) == 40 and not both.is_lazy
    lazy = load_cuts(toy_corpus.fbank_dir, "toy", ["train", "dev"], lazy=True)
    assert lazy.is_lazy
    assert {cut.id for cut in lazy} == {cut.id for cut in both}
    assert [cut.id for cut in lazy] == [cut.id for cut in lazy]


def test_what_cannot_be_read(toy_corpus: ToyCorpus, tmp_path: Path) -> None:
    def fails(path: Path, match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            read_cuts(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    fails(tmp_path / "absent.jsonl.gz", "prepare.sh")
    damaged = tmp_path / "damaged.jsonl.gz"
    damaged.write_bytes((toy_corpus.fbank_dir / "toy_cuts_train.jsonl.gz").read_bytes()[:200])
    fails(damaged, "cannot be read as cuts")
    foreign = tmp_path / "foreign.jsonl.gz"
    foreign.write_bytes(gzip.compress(b'{"a": 1}\n'))
    fails(foreign, "cannot be read as cuts")
    (tmp_path / "plain.jsonl.gz").write_text("no gzip")
    fails(tmp_path / "plain.jsonl.gz", "cannot be read as cuts")
    (tmp_path / "empty.jsonl").write_text("")
    fails(tmp_path / "empty.jsonl", "holds no cuts")
    fails(toy_corpus.manifest_dir / "toy_recordings_train.jsonl.gz", "not cuts")
    with pytest.raises(UserError, match="no split"):
        load_cuts(tmp_path, "toy", "")


def test_noise_has_to_be_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prepare MUSAN first"):
        load_noise(tmp_path)
