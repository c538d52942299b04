"""Resampling: against torchaudio, against tones, piece by piece, at any rate, and behind lhotse's manifests."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.data.features import read_audio
from lowbit_k2.data.preparation import to_sampling_rate
from lowbit_k2.data.resampling import resample, resample_in_lhotse, resampled
from lowbit_k2.errors import UserError
from lowbit_k2.processes import forget_peak, peak_memory
from tests.data.conftest import RATE, write_wav

lhotse = pytest.importorskip("lhotse")
soundfile = pytest.importorskip("soundfile")


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


@pytest.mark.skipif(importlib.util.find_spec("torchaudio") is None, reason="torchaudio is not installed")
@pytest.mark.parametrize("source, target", [(8000, 16000), (16000, 8000), (44100, 16000), (11025, 16000)])
def test_as_torchaudio_does(source: int, target: int) -> None:
    """In double precision, since torchaudio's single precision filters are 1e-3 off at 11025 Hz."""
    import torch
    import torchaudio

    signal = noise(source + 17)
    theirs = torchaudio.functional.resample(torch.from_numpy(signal).double(), source, target).numpy()
    ours = resample(signal, source, target)
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "source, target", [(8000, 16000), (16001, 16000), (48000, 16000), (4001, 8000), (383_999, 16000)]
)
def test_a_tone_stays_a_tone(source: int, target: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(source // 2) / source).astype(np.float32)
    result = resample(tone, source, target)
    assert len(result) == -(-len(tone) * target // source)
    wanted = np.sin(2 * np.pi * 440 * np.arange(len(result)) / target)
    assert np.abs(result - wanted)[200:-200].max() < 1e-2


def test_what_the_lower_rate_cannot_hold_is_gone() -> None:
    high = np.sin(2 * np.pi * 7000 * np.arange(16000) / 16000).astype(np.float32)
    assert np.abs(resample(high, 16000, 8000))[100:-100].max() < 1e-2


@pytest.mark.parametrize("source, target", [(44100, 16000), (16001, 16000), (8000, 16000), (16000, 8000)])
def test_pieces_do_not_show(source: int, target: int) -> None:
    signal = noise(5000)
    whole = resample(signal, source, target)
    for cuts in ([1, 2, 3, 40, 41], [1000], range(0, 5000, 7), [4999]):
        pieces = resampled(np.split(signal, list(cuts)), source, target)
        np.testing.assert_array_equal(np.concatenate(list(pieces)), whole)
    assert len(resample(signal[:0], source, target)) == 0 and len(resample(signal[:1], source, target)) >= 1


def test_rates_without_a_common_divisor_take_little_memory(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "odd.wav", 3.0, seed=1, rate=16001)
    code = (
        "import sys; from lowbit_k2.data.features import read_audio;"
        "from lowbit_k2.processes import peak_memory;"
        "before = peak_memory();"
        "assert len(read_audio(sys.argv[1], 16000)) == 48000; print(peak_memory() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000_000


@pytest.mark.attack
@pytest.mark.parametrize("rate", [7, 3999, 384_001, 999_983])
def test_unlikely_rates_are_refused(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "x.wav", noise(5000), rate)
    line = rf"x.wav has a sampling rate of {rate} Hz, 4000 to 384000 Hz are read"
    with pytest.raises(UserError, match=line):
        read_audio(tmp_path / "x.wav", RATE)
    recording = lhotse.Recording.from_file(tmp_path / "x.wav")
    with pytest.raises(UserError, match=line):
        to_sampling_rate(lhotse.CutSet.from_cuts([recording.to_cut()]), RATE)


@pytest.mark.parametrize("rate", [8000, 44100, 16001])
def test_lhotse_resamples_by_the_same_function(tmp_path: Path, rate: int) -> None:
    """Cuts in memory and out of a manifest; no torchaudio, no scipy is needed."""
    path = write_wav(tmp_path / "x.wav", 1.5, seed=2, rate=rate)
    forget_peak()
    before = peak_memory()
    cuts = to_sampling_rate(lhotse.CutSet.from_cuts([lhotse.Recording.from_file(path).to_cut()]), RATE)
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    resample_in_lhotse()  # once more does no harm
    expected = read_audio(path, RATE).numpy()
    for [cut] in (list(cuts), list(lhotse.CutSet.from_file(tmp_path / "cuts.jsonl.gz"))):
        np.testing.assert_array_equal(cut.load_audio()[0], expected[: cut.num_samples])
        assert [t["name"] if isinstance(t, dict) else type(t).__name__ for t in cut.recording.transforms] == [
            "Resample"
        ]
    assert peak_memory() - before < 200_000_000
