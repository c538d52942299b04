from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit_k2.data.features import (
    EXTRACTORS,
    FeatureConfig,
    check_feature_config,
    extract_wav,
    load_features,
    make_extractor,
    normalize_features,
    num_frames,
    read_audio,
    read_feature_config,
    write_feature_config,
)
from lowbit_k2.data.resampling import resample
from lowbit_k2.errors import UserError

from .conftest import RATE, ToyCorpus, soundfile, write_wav

RAW = FeatureConfig(normalize="none")


def test_config_round_trip() -> None:
    config = FeatureConfig(num_mel_bins=40, normalize="none")
    assert FeatureConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="another version"):
        FeatureConfig.from_dict({"pitch": True})


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "mfcc"},
        {"extractor": "sox"},
        {"normalize": "yes"},
        {"num_mel_bins": 0},
        {"frame_shift": -1},
        {"low_freq": -1.0},
        {"high_freq": 8001.0},
        {"low_freq": 4000.0, "sampling_rate": 8000},
    ],
)
def test_config_refuses(wrong: dict) -> None:
    with pytest.raises(UserError):
        FeatureConfig(**wrong)


def test_settings_stay_with_the_stored_features(tmp_path: Path) -> None:
    assert read_feature_config(tmp_path) == FeatureConfig()
    config = FeatureConfig(num_mel_bins=40)
    write_feature_config(tmp_path, config)
    assert read_feature_config(tmp_path) == config
    assert read_feature_config(tmp_path, "none") == replace(config, normalize="none")
    check_feature_config(tmp_path, replace(config, normalize="none"))  # normalised on loading, not in the store
    with pytest.raises(UserError, match="other feature settings"):
        check_feature_config(tmp_path, FeatureConfig())


@pytest.mark.parametrize("num_mel_bins", [64, 80])
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_telephone_bands_hold_speech(num_mel_bins: int, extractor: str) -> None:
    """At 8 kHz a bin spans few lines of the spectrum: none may be without any, and none may reach beyond 3.8 kHz."""
    if extractor == "kaldifeat" and importlib.util.find_spec("kaldifeat") is None:
        pytest.skip("kaldifeat is not installed: make kaldifeat")
    config = FeatureConfig(
        num_mel_bins=num_mel_bins, sampling_rate=8000, high_freq=-200, normalize="none", extractor=extractor
    )
    time = np.arange(8000) / 8000
    rng = np.random.default_rng(0)
    noise = extract_wav((0.1 * rng.standard_normal(8000)).astype(np.float32), config)  # (T, F)
    assert noise.shape == (100, num_mel_bins) and bool((noise.std(dim=0) > 0.1).all())
    tones = [extract_wav((0.1 * np.sin(2 * np.pi * f * time)).astype(np.float32), config) for f in (3700, 3900)]
    inside, beyond = (tone[50, -1] for tone in tones)
    assert inside > beyond + 5


def test_normalize() -> None:
    features = torch.randn(50, 8) * 3 + torch.arange(8.0)
    assert torch.equal(normalize_features(features, RAW), features)
    centred = normalize_features(features, FeatureConfig())
    torch.testing.assert_close(centred, features - features.mean(dim=0))
    scaled = normalize_features(features, FeatureConfig(normalize="utterance-std"))
    torch.testing.assert_close(scaled.std(dim=0, unbiased=False), torch.ones(8))
    silence = normalize_features(torch.full((5, 8), -23.0), FeatureConfig(normalize="utterance-std"))
    assert bool((silence == 0).all())


def test_files_cuts_and_samples_give_the_same(toy_corpus: ToyCorpus) -> None:
    """One normalisation and one extractor for training and for --wav; stored features are rounded by lilcom."""
    cut = next(iter(toy_corpus.cuts))
    config = FeatureConfig()
    from_file = extract_wav(toy_corpus.wav_dir / f"{cut.id}.wav", config)
    samples = torch.from_numpy(cut.load_audio()[0])
    assert torch.equal(from_file, extract_wav(samples, config))
    assert torch.equal(from_file, extract_wav(samples.numpy(), config, make_extractor(config)))
    assert torch.equal(from_file, load_features(cut, config, make_extractor(config)))
    assert num_frames(cut, config) == num_frames(cut.drop_features(), config) == len(from_file)
    torch.testing.assert_close(load_features(cut, config), from_file, atol=0.1, rtol=0)


@pytest.mark.parametrize("normalize", ["none", "utterance"])
def test_against_a_filter_bank_written_out(normalize: str, toy_corpus: ToyCorpus) -> None:
    """Kaldi's recipe in numpy: preemphasis, povey window, power spectrum, Mel triangles, logarithm."""
    samples = read_audio(next(toy_corpus.wav_dir.glob("*.wav")), RATE).double().numpy()
    count = (len(samples) + 80) // 160
    left = 400 // 2 - 160 // 2
    mirrored = np.concatenate([samples[:left][::-1], samples, samples[::-1][: 400 + 160]])
    frames = np.stack([mirrored[160 * i : 160 * i + 400] for i in range(count)])
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(frames * window, 512)) ** 2

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127 * np.log(1 + hertz / 700)

    points = np.linspace(mel(np.array(20.0)), mel(np.array(7600.0)), 82)
    bins = mel(np.arange(257) * RATE / 512)
    rise = (bins - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    fall = (points[2:, None] - bins) / (points[2:] - points[1:-1])[:, None]
    triangles = np.maximum(0, np.minimum(rise, fall))
    triangles[:, 256] = 0
    wanted = np.log(np.maximum(power @ triangles.T, 1e-10))
    if normalize == "utterance":
        wanted = wanted - wanted.mean(axis=0)
    got = extract_wav(torch.from_numpy(samples), FeatureConfig(normalize=normalize)).double().numpy()
    assert np.abs(got - wanted).max() < 2e-3


@pytest.mark.parametrize(("suffix", "rate", "channels"), [(".wav", 8000, 1), (".flac", 44100, 2), (".wav", 16000, 2)])
def test_rates_channels_and_formats(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    path = write_wav(tmp_path / f"x{suffix}", 0.7, seed=3, rate=rate, channels=channels)
    samples = read_audio(path, RATE)
    assert samples.shape == (round(0.7 * RATE),)
    first = soundfile.read(path, dtype="float32", always_2d=True)[0][:, 0]
    np.testing.assert_array_equal(samples.numpy(), resample(first, rate, RATE))
    assert extract_wav(path, FeatureConfig()).shape == (70, 80)


def test_bad_audio(tmp_path: Path) -> None:
    def fails(path: Path | torch.Tensor, match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            extract_wav(path, FeatureConfig())
        assert "\n" not in str(caught.value)

    fails(tmp_path / "absent.wav", "absent.wav does not exist")
    fails(tmp_path, "is no file")
    (tmp_path / "text.wav").write_text("no audio at all")
    fails(tmp_path / "text.wav", "text.wav cannot be read as audio")
    (tmp_path / "nothing.wav").write_bytes(b"")
    fails(tmp_path / "nothing.wav", "nothing.wav cannot be read as audio")
    whole = write_wav(tmp_path / "whole.flac", 1.0, seed=1).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[:50])
    fails(tmp_path / "cut.flac", "cut.flac")
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1)), RATE)
    fails(tmp_path / "empty.wav", "no audio samples")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), RATE)
    fails(tmp_path / "short.wav", "too short")
    fails(torch.full((1000,), float("nan")), "not finite")
    for number, bad in enumerate((np.nan, np.inf)):
        soundfile.write(tmp_path / f"bad{number}.wav", np.array([0.1] * 999 + [bad]), RATE, subtype="FLOAT")
        fails(tmp_path / f"bad{number}.wav", rf"bad{number}.wav holds samples that are not finite")


def test_cuts_without_features_or_audio(toy_corpus: ToyCorpus, tmp_path: Path) -> None:
    cut = next(iter(toy_corpus.cuts))
    with pytest.raises(UserError, match="compute_fbank"):
        load_features(cut.drop_features(), FeatureConfig())
    gone = cut.with_features_path_prefix(tmp_path / "moved")
    gone.features.storage_path = str(tmp_path / "gone.lca")
    with pytest.raises(
        UserError, match=f"features of cut {cut.id} cannot be read: no .*gone.lca; has the folder been moved"
    ):
        load_features(gone, FeatureConfig())


@pytest.mark.parametrize("name", ["an4/wav/an4_clstk/fash/an251-fash-b.wav", "sph"])
def test_real_files(data_dir: Path, name: str) -> None:
    path = data_dir / name
    paths = [path] if path.is_file() else sorted(path.glob("*.sph"))
    read = 0
    for each in paths:
        try:
            features = extract_wav(each, FeatureConfig())
        except UserError as error:  # shorten compression and the like
            assert each.name in str(error)
            continue
        read += 1
        assert bool(torch.isfinite(features).all()) and features.shape[1] == 80
    assert read > 0


@pytest.mark.skipif(importlib.util.find_spec("kaldifeat") is None, reason="kaldifeat is not installed: make kaldifeat")
def test_kaldifeat_gives_the_same_features(data_dir: Path) -> None:
    """Rounding of logarithms near the floor; seen on these files: at most 2.2e-4, 3e-6 on the average."""
    for path in sorted((data_dir / "an4/wav/an4_clstk").glob("*/an25*.wav"))[:10]:
        samples = read_audio(path, RATE)
        ours = extract_wav(samples, RAW)
        theirs = extract_wav(samples, replace(RAW, extractor="kaldifeat"))
        assert ours.shape == theirs.shape
        difference = (ours - theirs).abs()
        print(f"{path.name}: max {difference.max():.1e}, mean {difference.mean():.1e}")
        assert float(difference.max()) < 1e-3 and float(difference.mean()) < 2e-5


def test_without_kaldifeat_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lhotse.features.kaldifeat.is_module_available", lambda *names: False)
    with pytest.raises(UserError, match="make kaldifeat"):
        make_extractor(FeatureConfig(extractor="kaldifeat"))


def test_features_of_long_audio_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Piece by piece, whatever the remainder; and bitwise lhotse's where one piece is enough."""
    import lhotse

    from lowbit_k2.data import fbank

    for frame_length, rate in ((0.025, RATE), (0.05, 8000)):
        config = FeatureConfig(sampling_rate=rate, frame_length=frame_length, normalize="none", high_freq=-400)
        extractor = make_extractor(config)
        reference = lhotse.Fbank(extractor.config)
        for num_samples in (RATE, RATE + 79, RATE + 80, RATE + 1234, 4 * RATE):
            samples = (0.1 * np.random.default_rng(0).standard_normal((1, num_samples))).astype(np.float32)
            monkeypatch.setattr(fbank, "PIECE", 6000)
            whole = reference.extract(samples, rate)
            np.testing.assert_array_equal(extractor.extract(samples, rate), whole)
            for piece in (7, 50, 99, len(whole) - 1):
                monkeypatch.setattr(fbank, "PIECE", piece)
                pieces = extractor.extract(samples, rate)
                assert pieces.shape == whole.shape and pieces.dtype == whole.dtype
                np.testing.assert_allclose(pieces, whole, atol=1e-3)
                as_tensor = extractor.extract(torch.from_numpy(samples[0]), rate)
                np.testing.assert_array_equal(as_tensor.numpy(), pieces)
