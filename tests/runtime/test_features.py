"""Filter banks of the runtime against those of training."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lowbit_k2.core.features import NORMALIZATIONS, FeatureConfig
from lowbit_k2.errors import UserError
from lowbit_k2.runtime import UnsupportedError
from lowbit_k2.runtime.features import FeatureStream, make_fbank, normalize, num_frames
from tests.runtime.packages import needs_fbank

CONFIGS = {
    "default": FeatureConfig(),
    "few bins": FeatureConfig(num_mel_bins=23, normalize="utterance-std"),
    "8 kHz": FeatureConfig(sampling_rate=8000, num_mel_bins=40, high_freq=3700.0),
    "odd rate": FeatureConfig(sampling_rate=11025, low_freq=64.0, normalize="none"),
    "odd frames": FeatureConfig(frame_length=0.0321, frame_shift=0.0123),
}


def sound(num_samples: int) -> np.ndarray:
    """Noise that swells and dies down to silence."""
    noise = np.random.default_rng(num_samples).normal(size=num_samples)
    noise *= 0.2 * np.sin(np.arange(num_samples) / 3000) ** 4
    noise[num_samples // 2 : num_samples // 2 + 900] = 0
    return noise.astype(np.float32)


@needs_fbank
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_samples", [900, 12345, 60000])
def test_features_are_those_of_training(name: str, num_samples: int) -> None:
    from lowbit_k2.data.features import extract_wav

    config, samples = CONFIGS[name], sound(num_samples)
    expected = extract_wav(samples, config).numpy()
    blocks = np.split(samples, [1, 333, 700])
    found = normalize(FeatureStream(config, blocks).take(0, num_frames(config, num_samples)), config)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() < 2e-3  # of logarithms, some 20 apart


@needs_fbank
def test_a_window_that_moves_on() -> None:
    samples, config = sound(50000), FeatureConfig()
    whole = FeatureStream(config, [samples]).take(0, 313)
    stream = FeatureStream(config, np.split(samples, range(1000, 50000, 1000)))
    for start, stop in ((0, 50), (20, 120), (120, 200), (250, 313)):
        assert (stream.take(start, stop) == whole[start:stop]).all()
    with pytest.raises(AssertionError):
        stream.take(0, 10)


@needs_fbank
def test_blocks_are_read_when_they_are_needed() -> None:
    given = []

    def blocks():
        for block in np.split(sound(160000), 10):
            given.append(len(block))
            yield block

    FeatureStream(FeatureConfig(), blocks()).take(0, 150)
    assert len(given) == 2


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_normalization(kind: str) -> None:
    import torch

    from lowbit_k2.data.features import normalize_features

    matrix = np.random.default_rng(0).normal(-8, 3, (200, 7)).astype(np.float32)
    matrix[:, 2] = -15.9
    config = FeatureConfig(num_mel_bins=7, normalize=kind)
    expected = normalize_features(torch.from_numpy(matrix), config).numpy()
    assert np.abs(normalize(matrix, config) - expected).max() < 1e-4


def test_what_cannot_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="frames with less than 2 samples at 50 Hz"):
        make_fbank(FeatureConfig(sampling_rate=50, low_freq=0.0, high_freq=0.0))
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    with pytest.raises(UnsupportedError, match="pip install kaldi-native-fbank"):
        make_fbank(FeatureConfig())


@needs_fbank
def test_samples_that_are_no_numbers() -> None:
    samples = sound(5000)
    samples[77] = np.nan
    with pytest.raises(UserError, match="a.wav holds samples that are not finite"):
        FeatureStream(FeatureConfig(), [samples], "a.wav").take(0, num_frames(FeatureConfig(), 5000))
