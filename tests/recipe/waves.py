"""A corpus of short noises in WAV files with lhotse's manifests, for what reads audio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet

from lowbit_k2.data.manifests import write_manifests


def make_waves(folder: Path, corpus: str = "mine", train: int = 12, dev: int = 3) -> Path:
    """The folder of manifests; utterances of 0.4 to 0.7 s in which a tone follows another, of two speakers a split."""
    generator = np.random.default_rng(0)
    manifests = {}
    for split, number in (("train", train), ("dev", dev)):
        recordings, supervisions = [], []
        for i in range(number):
            name, samples = f"{split}-{i:02}", np.zeros(0)
            for pitch in generator.choice([200.0, 700.0, 1900.0], 4):
                length = int(generator.integers(1600, 2800))
                samples = np.append(samples, np.sin(2 * np.pi * pitch * np.arange(length) / 16000))
            samples = 0.3 * samples + 0.01 * generator.standard_normal(len(samples))
            path = folder / "wav" / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, samples, 16000)
            recordings.append(Recording.from_file(path, recording_id=name))
            speaker = f"{split}-{i % 2}"
            supervisions.append(
                SupervisionSegment(name, name, 0.0, recordings[-1].duration, text="YES NO", speaker=speaker)
            )
        manifests[split] = {
            "recordings": RecordingSet.from_recordings(recordings),
            "supervisions": SupervisionSet.from_segments(supervisions),
        }
    write_manifests(corpus, manifests, folder / "manifests")
    return folder / "manifests"
