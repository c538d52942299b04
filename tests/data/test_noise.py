from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import FeatureConfig, load_features, make_extractor, num_frames, read_audio
from lowbit_k2.data.noise import NoiseConfig, add_noise
from lowbit_k2.errors import UserError
from lowbit_k2.recipe.compute_fbank import get_parser, run

from .conftest import RATE, ToyCorpus, lhotse, soundfile

ALWAYS = NoiseConfig(probability=1.0)
RAW = FeatureConfig(normalize="none")


@pytest.fixture(scope="module")
def noises(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list:
    """Real noise at 16 kHz (the originals have 44.1 kHz), cut into windows of 2 s, with stored features."""
    root = tmp_path_factory.mktemp("noise")
    recordings = []
    for path in sorted((data_dir / "noise_esc10").glob("*/*.ogg"))[::4]:
        target = root / f"{path.stem}.wav"
        soundfile.write(target, read_audio(path, RATE).numpy(), RATE)
        recordings.append(lhotse.Recording.from_file(target))
    lhotse.RecordingSet.from_recordings(recordings).to_file(root / "musan_recordings_noise.jsonl.gz")
    flags = f"--corpus musan --splits noise --window 2 --manifest-dir {root} --output-dir {root / 'fbank'}"
    run(get_parser().parse_args(flags.split()))
    cuts = list(lhotse.CutSet.from_file(root / "fbank" / "musan_cuts_noise.jsonl.gz"))
    assert len(cuts) == 15  # 5 recordings of 5 s: 2 + 2 + 1 s
    assert all(cut.has_features and cut.duration <= 2 for cut in cuts)
    # Some clips end in digital silence, which is no noise.
    loud = [cut for cut in cuts if cut.duration == 2 and np.abs(cut.load_audio()[0, 500::1000]).min() > 0]
    assert len(loud) >= 5
    return loud


@pytest.mark.parametrize("stored", [True, False])
def test_noise_keeps_id_length_and_text(toy_corpus: ToyCorpus, noises: list, stored: bool) -> None:
    extractor = None if stored else make_extractor(RAW)
    for cut in list(toy_corpus.cuts)[:10]:
        mixed = add_noise(cut, noises, ALWAYS, seed=1, epoch=1)
        assert (mixed.id, mixed.duration, mixed.sampling_rate) == (cut.id, cut.duration, cut.sampling_rate)
        assert [s.text for s in mixed.supervisions] == [s.text for s in cut.supervisions]
        clean, noisy = load_features(cut, RAW, extractor), load_features(mixed, RAW, extractor)
        assert noisy.shape == clean.shape == (num_frames(cut, RAW), 80)
        assert float((noisy - clean).abs().max()) > 0.1
        assert float((noisy - clean).mean()) > 0.0  # energies add up; phases cancel here and there


def test_level_of_the_noise(toy_corpus: ToyCorpus, noises: list) -> None:
    cut = max(toy_corpus.cuts, key=lambda c: c.duration)
    # A piece of noise that covers the whole cut, so that one level holds.
    long = [noise for noise in noises if noise.duration == 2.0][:1]
    cut = cut.truncate(duration=1.5, preserve_id=True)
    for snr in (0.0, 10.0):
        mixed = add_noise(cut, long, replace(ALWAYS, min_snr=snr, max_snr=snr), seed=1, epoch=1)
        clean = cut.load_audio()
        noise = mixed.load_audio() - clean
        measured = 10 * np.log10(np.mean(clean**2) / np.mean(noise**2))
        # lhotse takes the level of the noise before it is cut to length.
        assert measured == pytest.approx(snr, abs=3.0)


def test_a_pure_function_of_seed_epoch_and_id(toy_corpus: ToyCorpus, noises: list) -> None:
    cut = next(iter(toy_corpus.cuts))
    config = NoiseConfig()

    def audio(seed: int, epoch: int) -> bytes:
        return add_noise(cut, noises, ALWAYS, seed, epoch).load_audio().tobytes()

    assert audio(1, 2) == audio(1, 2)
    assert len({audio(1, 2), audio(2, 1), audio(1, 3)}) == 3
    noisy = sum(add_noise(cut, noises, config, 7, epoch) is not cut for epoch in range(400))
    assert 150 < noisy < 250  # half of the visits


@pytest.mark.parametrize("wrong", [{"probability": 2.0}, {"min_snr": 20.0, "max_snr": 10.0}])
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(UserError, match="probability|min_snr"):
        NoiseConfig(**wrong)


def test_training_batches_with_noise(toy_corpus: ToyCorpus, noises: list, tmp_path: Path) -> None:
    """Skipping batches changes no draw; validation stays clean."""
    lhotse.CutSet.from_cuts(noises).to_file(tmp_path / "musan_cuts_noise.jsonl.gz")
    config = DataConfig(manifest_dir=tmp_path, max_duration=8.0, num_buckets=3, enable_musan=True)
    module, clean = AsrDataModule(config), AsrDataModule(replace(config, enable_musan=False))
    whole = list(module.train_batches(toy_corpus.cuts, epoch=2))
    rest = list(AsrDataModule(config).train_batches(toy_corpus.cuts, epoch=2, skip=3))
    assert len(rest) == len(whole) - 3 > 0
    for one, other in zip(whole[3:], rest, strict=True):
        assert one.ids == other.ids and bool((one.inputs == other.inputs).all())
    untouched = 0
    for noisy, plain in zip(whole, clean.train_batches(toy_corpus.cuts, epoch=2), strict=True):
        assert noisy.ids == plain.ids and noisy.input_lens.tolist() == plain.input_lens.tolist()
        untouched += sum(bool((a == b).all()) for a, b in zip(noisy.inputs, plain.inputs, strict=True))
    assert 5 < untouched < 25
    pairs = zip(module.valid_batches(toy_corpus.cuts), clean.valid_batches(toy_corpus.cuts), strict=True)
    assert all(bool((a.inputs == b.inputs).all()) for a, b in pairs)
