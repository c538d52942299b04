from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowbit_k2.data import datamodule
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig, epoch_seed
from lowbit_k2.data.features import FeatureConfig
from lowbit_k2.data.noise import NoiseConfig
from lowbit_k2.errors import UserError
from lowbit_k2.recipe.training_flags import add_data_flags, read_data_flags

from .conftest import ToyCorpus, lhotse

CONFIG = DataConfig(max_duration=8.0, num_buckets=3)


def make(toy_corpus: ToyCorpus, **changes) -> AsrDataModule:
    world = {name: changes.pop(name) for name in ("world_size", "rank") if name in changes}
    return AsrDataModule(replace(CONFIG, manifest_dir=toy_corpus.fbank_dir, **changes), **world)


def ids(batches) -> list[list[str]]:
    return [batch.ids for batch in batches]


def equal(one: Batch, other: Batch) -> bool:
    same = one.ids == other.ids and one.texts == other.texts and torch.equal(one.input_lens, other.input_lens)
    return same and torch.equal(one.inputs, other.inputs)


def test_every_cut_comes_once_per_epoch(toy_corpus: ToyCorpus) -> None:
    module = make(toy_corpus)
    for epoch in range(1, 8):
        batches = list(module.train_batches(toy_corpus.cuts, epoch))
        assert sorted(name for batch in batches for name in batch.ids) == sorted(toy_corpus.cuts.ids)
        assert len(batches) == module.num_train_batches(toy_corpus.cuts, epoch)
        for batch in batches:
            assert batch.inputs.shape[:2] == (len(batch.ids), int(batch.input_lens.max()))
            assert batch.inputs.size(0) * batch.inputs.size(1) <= 800
            for matrix, length in zip(batch.inputs, batch.input_lens.tolist(), strict=True):
                torch.testing.assert_close(matrix[:length].mean(dim=0), torch.zeros(80), atol=1e-4, rtol=0)
                assert bool((matrix[length:] == 0).all())


def test_the_order_is_a_function_of_seed_and_epoch(toy_corpus: ToyCorpus) -> None:
    def order(seed: int, epoch: int) -> str:
        return str(ids(make(toy_corpus, seed=seed).train_batches(toy_corpus.cuts, epoch)))

    assert order(1, 2) == order(1, 2)
    assert len({order(1, 2), order(2, 1), order(1, 3), order(2, 2)}) == 4
    module = make(toy_corpus, seed=1)
    list(module.train_batches(toy_corpus.cuts, 1))  # what came before does not matter
    assert str(ids(module.train_batches(toy_corpus.cuts, 2))) == order(1, 2)


def test_the_order_is_the_same_in_another_process(toy_corpus: ToyCorpus, repo_root: Path) -> None:
    """Hash randomisation and the state of generators have no part in it."""
    code = (
        "from lowbit_k2.data.datamodule import *; from lowbit_k2.data.manifests import load_cuts; import random\n"
        f"random.seed(); d = {str(toy_corpus.fbank_dir)!r}; m = AsrDataModule(DataConfig(manifest_dir=d, "
        "max_duration=8.0, num_buckets=3)); print([b.ids for b in m.train_batches(load_cuts(d, 'toy', 'train'), 5)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ids(make(toy_corpus).train_batches(toy_corpus.cuts, 5)))


def test_epoch_seeds_differ() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(30) for epoch in range(1, 40)}
    assert len(seeds) == 30 * 39 and all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_passes_over_batches_without_loading_them(
    toy_corpus: ToyCorpus, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(make(toy_corpus).train_batches(toy_corpus.cuts, 3))
    module = make(toy_corpus, num_workers=num_workers)
    loaded = []
    monkeypatch.setattr(
        datamodule,
        "load_features",
        lambda cut, *rest, f=datamodule.load_features: loaded.append(cut.id) or f(cut, *rest),
    )
    for skip in (0, 1, len(whole) - 1, len(whole)):
        loaded.clear()
        rest = list(module.train_batches(toy_corpus.cuts, 3, skip=skip))
        assert len(rest) == len(whole) - skip
        assert all(equal(one, other) for one, other in zip(whole[skip:], rest, strict=True))
        if num_workers == 0:
            assert loaded == [name for batch in whole[skip:] for name in batch.ids]


def test_workers_leave_the_global_generator_alone(toy_corpus: ToyCorpus) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(make(toy_corpus, num_workers=1).train_batches(toy_corpus.cuts, 1))
    assert torch.equal(before, torch.get_rng_state())


def test_the_cache_holds_what_is_on_disk(toy_corpus: ToyCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cached = make(toy_corpus), make(toy_corpus, cache_features=True)
    list(cached.train_batches(toy_corpus.cuts, 1))
    wanted = list(plain.train_batches(toy_corpus.cuts, 2))
    monkeypatch.setattr(datamodule, "load_features", None)
    got = list(cached.train_batches(toy_corpus.cuts, 2))
    assert all(equal(one, other) for one, other in zip(wanted, got, strict=True))


def test_the_cache_knows_cuts_of_the_same_name_apart(toy_corpus: ToyCorpus) -> None:
    module, cut = make(toy_corpus, cache_features=True), next(iter(toy_corpus.cuts))
    assert len(module.load(cut)) != len(module.load(cut.truncate(duration=0.4, preserve_id=True)))


def test_on_the_fly_features(toy_corpus: ToyCorpus) -> None:
    stored = list(make(toy_corpus).valid_batches(toy_corpus.cuts))
    fresh = list(make(toy_corpus, on_the_fly_feats=True).valid_batches(toy_corpus.cuts.drop_features().to_eager()))
    for one, other in zip(stored, fresh, strict=True):
        assert one.ids == other.ids
        torch.testing.assert_close(one.inputs, other.inputs, atol=0.15, rtol=0)  # lilcom rounds


def test_the_largest_batches_of_an_epoch(toy_corpus: ToyCorpus) -> None:
    data = make(toy_corpus, max_duration=6.0)
    largest = data.largest_batches(toy_corpus.cuts)
    batches = list(data.train_batches(toy_corpus.cuts, epoch=1))
    found = [sorted(batch.ids) for batch in largest.values()]
    assert all(ids in [sorted(batch.ids) for batch in batches] for ids in found)
    assert len({tuple(ids) for ids in found}) == len(found) >= 1, "each once"
    assert max(len(batch.ids) for batch in largest.values()) == max(len(batch.ids) for batch in batches)
    assert max(int(batch.input_lens.max()) for batch in largest.values()) == max(
        int(batch.input_lens.max()) for batch in batches
    )
    assert all(reason.replace(" ", "").isalpha() for reason in largest)
    assert make(toy_corpus, max_duration=600.0, drop_last=True).largest_batches(toy_corpus.cuts) == {}


def test_validation_has_all_cuts_in_a_fixed_order(toy_corpus: ToyCorpus) -> None:
    module = make(toy_corpus)
    first, second = ids(module.valid_batches(toy_corpus.cuts)), ids(module.test_batches(toy_corpus.cuts))
    assert first == second
    assert sorted(sum(first, [])) == sorted(toy_corpus.cuts.ids)


def test_ranks_share_an_epoch(toy_corpus: ToyCorpus) -> None:
    names, lengths = [], set()
    for rank in range(2):
        batches = list(make(toy_corpus, world_size=2, rank=rank).train_batches(toy_corpus.cuts, 1))
        names.append({name for batch in batches for name in batch.ids})
        lengths.add(len(batches))
    assert len(lengths) == 1, "ranks would wait for each other"
    assert names[0] | names[1] == set(toy_corpus.cuts.ids)
    assert len(names[0] & names[1]) <= 1, "one cut may be left over at the end: both ranks get it"


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2), (1, 4)])
@pytest.mark.parametrize("rounds", [1, 2])
def test_another_number_of_ranks_within_an_epoch(toy_corpus: ToyCorpus, before: int, after: int, rounds: int) -> None:
    """What was seen before the change and what comes behind it make up the epoch; twice comes only what is dealt out
    at the end, where fewer cuts than ranks are left."""
    config = {"max_duration": 4.0}

    def share(world_size: int, rank: int, skip: int) -> list[list[str]]:
        module = make(toy_corpus, world_size=world_size, rank=rank, **config)
        return ids(module.train_batches(toy_corpus.cuts, 1, skip))

    seen = [batch for rank in range(before) for batch in share(before, rank, 0)[:rounds]]
    rest = [share(after, rank, before * rounds) for rank in range(after)]
    assert len({len(batches) for batches in rest}) == 1
    names = [name for batch in (*seen, *(batch for batches in rest for batch in batches)) for name in batch]
    ends = [name for batches in rest for name in batches[-1]]
    twice = len(names) - len(set(names))
    assert set(names) == set(toy_corpus.cuts.ids) and twice == len(ends) - len(set(ends)) < after


def test_fewer_cuts_than_ranks_at_the_end(toy_corpus: ToyCorpus) -> None:
    few = lhotse.CutSet.from_cuts(list(toy_corpus.cuts)[:2])
    shares = [ids(make(toy_corpus, world_size=3, rank=rank).train_batches(few, 1)) for rank in range(3)]
    assert [len(batches) for batches in shares] == [1, 1, 1]
    assert {name for batches in shares for name in batches[0]} == set(few.ids)
    dropped = make(toy_corpus, world_size=3, rank=0, drop_last=True)
    assert list(dropped.train_batches(few, 1)) == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_missing_features_are_one_line(toy_corpus: ToyCorpus, num_workers: int) -> None:
    cuts = toy_corpus.cuts.drop_features().to_eager()
    with pytest.raises(UserError, match="compute_fbank") as caught:
        list(make(toy_corpus, num_workers=num_workers).train_batches(cuts, 1))
    assert "\n" not in str(caught.value)


def test_a_killed_worker_is_one_line(toy_corpus: ToyCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, module = os.getpid(), make(toy_corpus, num_workers=1)

    def load(cut: lhotse.cut.Cut) -> torch.Tensor:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1, 80)

    monkeypatch.setattr(module, "load", load)
    with pytest.raises(UserError, match="a process that loads batches was killed .*lower num_workers") as caught:
        list(module.train_batches(toy_corpus.cuts, 1))
    assert "\n" not in str(caught.value)


def test_a_lazy_set(toy_corpus: ToyCorpus) -> None:
    lazy = lhotse.CutSet.from_jsonl_lazy(toy_corpus.fbank_dir / "toy_cuts_train.jsonl.gz")
    module = make(toy_corpus)
    assert ids(module.train_batches(lazy, 1)) == ids(module.train_batches(toy_corpus.cuts, 1))
    assert sorted(sum(ids(module.valid_batches(lazy)), [])) == sorted(toy_corpus.cuts.ids)


def test_the_flags(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_data_flags(parser)
    config = read_data_flags(parser.parse_args([]))
    assert config == DataConfig(), "defaults of flags and of the config differ"
    flags = f"--manifest-dir {tmp_path} --max-duration 30 --num-buckets 5 --enable-spec-aug no --cache-features 1"
    config = read_data_flags(parser.parse_args(flags.split()))
    assert config == DataConfig(tmp_path, 30.0, num_buckets=5, cache_features=True, spec_augment=None)
    flags = "--spec-aug-time-warp-factor 80 --spec-aug-max-time-fraction 0.5 --feature-normalize none"
    args = parser.parse_args(flags.split())
    args.seed = 7
    config = read_data_flags(args)
    assert config.spec_augment.time_warp_factor == 80 and config.spec_augment.max_time_fraction == 0.5
    assert config.spec_augment.fill == "mean", "zero is the mean of normalised features only"
    assert config.seed == 7
    assert AsrDataModule(config).features == FeatureConfig(normalize="none")
    flags = "--enable-musan true --musan-probability 1 --musan-min-snr 5 --musan-max-snr 5"
    config = read_data_flags(parser.parse_args(flags.split()))
    assert config.enable_musan and config.noise == NoiseConfig(1.0, 5.0, 5.0)
    with pytest.raises(UserError, match="--musan-min-snr 30.0 is larger than --musan-max-snr"):
        read_data_flags(parser.parse_args(["--musan-min-snr", "30"]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_duration": 0.0},
        {"num_buckets": 0},
        {"num_workers": -1},
        {"feature_normalize": "global"},
        {"cache_features": True, "num_workers": 2},
        {"cache_features": True, "enable_musan": True},
    ],
)
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(UserError, match="|".join(wrong)):
        DataConfig(**wrong)


def test_more_buckets_than_cuts(toy_corpus: ToyCorpus) -> None:
    """lhotse would stop with an assertion."""
    few = lhotse.CutSet.from_cuts(list(toy_corpus.cuts)[:3])
    for num_buckets in (2, 30):
        module = make(toy_corpus, num_buckets=num_buckets)
        assert sorted(sum(ids(module.train_batches(few, 1)), [])) == sorted(few.ids)
    one = lhotse.CutSet.from_cuts(list(toy_corpus.cuts)[:1])
    assert len(list(make(toy_corpus).train_batches(one, 1))) == 1


def test_real_speech(data_dir: Path, tmp_path: Path) -> None:
    """Some utterances of AN4, features on the fly, two speeds."""
    cuts = []
    for path in sorted((data_dir / "an4/wav/an4_clstk").glob("f*/*.wav"))[:24]:
        cut = lhotse.Recording.from_file(path).to_cut()
        cut.supervisions.append(lhotse.SupervisionSegment(cut.id, cut.id, 0.0, cut.duration, text="X"))
        cuts += [cut, cut.perturb_speed(0.9)]
    module = AsrDataModule(DataConfig(tmp_path, max_duration=20.0, num_buckets=4, on_the_fly_feats=True))
    batches = list(module.train_batches(lhotse.CutSet.from_cuts(cuts), 1))
    assert sum(len(batch.ids) for batch in batches) == 48
    frames = sum(int(batch.input_lens.sum()) for batch in batches)
    assert frames == pytest.approx(100 * sum(cut.duration for cut in cuts), rel=0.01)
