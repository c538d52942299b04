"""When tokens and words were said: tones at known times, and a network that hears nothing else."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lowbit_k2.core.chunks import ChunkConfig
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.models import CtcConfig
from lowbit_k2.runtime import PackedCtc, Recogniser
from lowbit_k2.runtime.transcript import Word, make_transcript
from lowbit_k2.runtime.units import Units
from tests.runtime.packages import needs_fbank

UNITS = Units(("<blk>", "<unk>", "▁", "▁GO", "A", "T", "▁N"), "", frozenset([0, 1]))


class Tones(PackedCtc):
    """Says A as long as the middle one of the frames that a Conformer sees for an output frame is loud."""

    def __init__(self, features: FeatureConfig) -> None:
        self.config = CtcConfig.preset("demo", vocab_size=2, num_features=features.num_mel_bins)
        tokens = json.dumps({"tokens": ["<blk>", "A"], "lexicon": []}).encode()
        self.packed = SimpleNamespace(features=features.to_dict(), tokens=tokens, tokens_kind="lexicon")

    def __call__(self, features: np.ndarray) -> np.ndarray:
        loud = features[3::4].max(axis=1)[: self.config.output_lens(len(features))] > 0
        return np.where(loud[:, None] == [[False, True]], -0.1, -3.0).astype(np.float32)


@needs_fbank
@pytest.mark.parametrize("rate", [16000, 11025])  # of the second a frame's shift is no whole number of samples
@pytest.mark.parametrize("chunk_seconds", [0.0, 5.0])
def test_times_are_right_to_a_frame(rate: int, chunk_seconds: float) -> None:
    rng = np.random.default_rng(rate)
    starts = np.cumsum(rng.uniform(0.4, 1.3, 60))  # 50 s
    time = np.arange(round((starts[-1] + 0.9) * rate)) / rate
    place = np.searchsorted(starts, time, side="right") - 1
    sounding = (place >= 0) & (time - starts[place] < 0.2)
    samples = (0.3 * np.sin(2 * np.pi * 700 * time) * sounding).astype(np.float32)
    features = FeatureConfig(num_mel_bins=20, sampling_rate=rate, normalize="none")
    chunking = ChunkConfig(chunk_seconds=chunk_seconds, chunk_overlap=1.0)
    recogniser = Recogniser(Tones(features), chunking=chunking)
    found = recogniser.transcribe(samples)
    assert found.text == " ".join(["A"] * 60) and found.labels == (1,) * 60
    assert found.seconds == len(samples) / rate
    errors = np.array([token.start for token in found.tokens]) - starts
    assert recogniser.frame_seconds == pytest.approx(0.04, rel=3e-3)
    assert np.abs(errors).max() <= recogniser.frame_seconds + 0.0125  # half a window is heard before its middle
    assert [word.start for word in found.words] == [token.start for token in found.tokens]


def test_words_begin_with_a_letter() -> None:
    """A mark of a word's beginning may come long before; the last frame may reach beyond the audio."""
    labels, frames = [2, 4, 5, 1, 3, 2, 2, 6, 4], [1, 10, 12, 13, 20, 21, 23, 30, 31]
    found = make_transcript(UNITS, labels, frames, 0.04, 1.25)
    assert found.words == (
        Word("AT", 10 * 0.04, 13 * 0.04),
        Word("GO", 20 * 0.04, 21 * 0.04),
        Word("NA", 30 * 0.04, 1.25),
    )
    assert [token.text for token in found.tokens] == ["▁", "A", "T", "<unk>", "▁GO", "▁", "▁", "▁N", "A"]
    assert found.tokens[-1].start == 31 * 0.04 and found.labels == tuple(labels)
    assert make_transcript(UNITS, [], [], 0.04, 0.01).text == ""


@pytest.mark.parametrize("between", ["", " "])
def test_spans_are_the_words(between: str) -> None:
    units, rng = Units(UNITS.pieces, between, UNITS.silent), np.random.default_rng(1)
    for length in range(30):
        ids = rng.integers(0, len(units.pieces), length).tolist()
        spelled = between.join(units.pieces[i] for i in ids if i > 1).replace("▁", " ").split()
        spans = units.spans(ids)
        assert [word for word, _, _ in spans] == units.words(ids) == spelled
        for word, first, last in spans:
            assert units.pieces[ids[first]].strip("▁")[0] == word[0] and units.pieces[ids[last]][-1] == word[-1]
