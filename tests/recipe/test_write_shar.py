"""Shards: the same cuts and features as from the manifest, through the datamodule, and what is refused."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.filter import FilterConfig, filter_cuts
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import UserError
from lowbit_k2.recipe import compute_fbank, write_shar
from tests.recipe.test_compute_fbank import make_corpus

lhotse = pytest.importorskip("lhotse")


@pytest.fixture
def fbank(tmp_path: Path) -> Path:
    corpus = make_corpus(tmp_path / "manifests", count=5)
    flags = ["--corpus", "toy", "--splits", "train", "--manifest-dir", corpus, "--output-dir", tmp_path / "fbank"]
    compute_fbank.run(compute_fbank.get_parser().parse_args(list(map(str, flags))))
    return tmp_path / "fbank"


def shar(fbank: Path, output: Path, *more: str) -> None:
    flags = ["--manifest-dir", fbank, "--output-dir", output, "--corpus", "toy", "--splits", "train", *more]
    write_shar.run(write_shar.get_parser().parse_args(list(map(str, flags))))


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_shards_hold_what_the_manifest_names(fbank: Path, tmp_path: Path, jobs: str) -> None:
    output = tmp_path / "shar"
    shar(fbank, output, "--shard-size", "4", "-j", jobs)
    assert sorted(path.name for path in (output / "toy_shar_train").glob("cuts.*")) == [
        f"cuts.00000{n}.jsonl.gz" for n in range(3)
    ]
    assert [path.name for path in output.iterdir() if path.name.startswith(".")] == []
    original, sharded = load_cuts(fbank, "toy", "train"), load_cuts(output, "toy", "train")
    assert sharded.is_lazy and not original.is_lazy
    (fbank / "feats_toy_train.lca").unlink()  # the shards need nothing else
    found = {cut.id: cut for cut in sharded}
    assert sorted(found) == sorted(original.ids)
    assert all(found[cut.id].supervisions[0].text == cut.supervisions[0].text for cut in original)
    assert all(found[cut.id].load_features().shape == (50, 80) for cut in original)


def test_training_reads_shards(fbank: Path, tmp_path: Path) -> None:
    """The same batches as from the lazy manifest, features within the rounding of their compression, twice."""
    output = tmp_path / "shar"
    shar(fbank, output, "--shard-size", "3")
    batches = []
    for folder in (fbank, output):
        data = AsrDataModule(DataConfig(manifest_dir=folder, max_duration=1.6, num_buckets=2))
        cuts, report = filter_cuts(
            load_cuts(folder, "toy", "train", lazy=True), lambda text: [1], FilterConfig(lambda frames: frames)
        )
        assert report.kept == 10 and cuts.is_lazy
        epochs = [list(data.train_batches(cuts, epoch)) for epoch in (1, 2)]
        assert [batch.ids for batch in islice(data.train_batches(cuts, 2, skip=1), 9)] == [b.ids for b in epochs[1][1:]]
        batches.append(epochs[0] + epochs[1])
    assert [batch.ids for batch in batches[0]] == [batch.ids for batch in batches[1]]
    for one, other in zip(*batches, strict=True):
        np.testing.assert_allclose(one.inputs, other.inputs, atol=0.1)


def test_audio(fbank: Path, tmp_path: Path) -> None:
    shar(fbank, tmp_path / "shar", "--field", "recording")
    for path in (tmp_path / "manifests").glob("*.wav"):
        path.unlink()
    data = AsrDataModule(DataConfig(manifest_dir=tmp_path / "shar", max_duration=2.0, on_the_fly_feats=True))
    batches = list(data.valid_batches(load_cuts(tmp_path / "shar", "toy", "train")))
    assert sum(len(batch.ids) for batch in batches) == 10 and batches[0].inputs.shape[1:] == (50, 80)


def test_the_second_run_does_nothing(fbank: Path, tmp_path: Path) -> None:
    shar(fbank, tmp_path / "shar")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shar").rglob("*")}
    shar(fbank, tmp_path / "shar")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shar").rglob("*")} == before


def test_what_is_refused(fbank: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shard_size"):
        shar(fbank, tmp_path / "shar", "--shard-size", "0")
    with pytest.raises(UserError, match="toy_cuts_other.jsonl.gz does not exist"):
        shar(fbank, tmp_path / "shar", "--splits", "other")
    (fbank / "feats_toy_train.lca").unlink()
    with pytest.raises(UserError, match="toy_shar_train cannot be written"):
        shar(fbank, tmp_path / "shar")
    assert not list((tmp_path / "shar").iterdir()), "nothing half-written"


def test_incomplete_shards(fbank: Path, tmp_path: Path) -> None:
    shar(fbank, tmp_path / "shar", "--shard-size", "4")
    folder = tmp_path / "shar/toy_shar_train"
    (folder / "features.000001.tar").unlink()
    with pytest.raises(UserError, match="lacks features.000001.tar"):
        load_cuts(tmp_path / "shar", "toy", "train")
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no shards"):
        load_cuts(tmp_path / "shar", "toy", "train")
