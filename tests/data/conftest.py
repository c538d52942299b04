"""A tiny corpus of sounds, made once: recordings, transcripts, cuts with stored features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

lhotse = pytest.importorskip("lhotse")
soundfile = pytest.importorskip("soundfile")

RATE = 16000
WORDS = ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "ZERO"]


@dataclass(frozen=True)
class ToyCorpus:
    """`cuts` have stored features; `fbank_dir` holds them as split `train` of corpus `toy`."""

    wav_dir: Path
    manifest_dir: Path
    fbank_dir: Path
    cuts: lhotse.CutSet


def write_wav(path: Path, seconds: float, seed: int, rate: int = RATE, channels: int = 1) -> Path:
    """Noise with a tone in it, so that no two files are alike."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    samples = 0.05 * rng.standard_normal((len(time), channels))
    samples += 0.2 * np.sin(2 * np.pi * (200 + 30 * seed) * time)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Work this small only gets slower by threads, on a busy machine a hundred times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> ToyCorpus:
    from lowbit_k2.data.manifests import load_cuts
    from lowbit_k2.recipe.compute_fbank import get_parser, run

    root = tmp_path_factory.mktemp("toy")
    recordings, supervisions = [], []
    for i in range(40):
        path = write_wav(root / "wav" / f"utt{i:02d}.wav", 0.6 + 0.05 * i, seed=i)
        recording = lhotse.Recording.from_file(path)
        recordings.append(recording)
        text = " ".join(WORDS[(i + k) % 10] for k in range(1 + i % 3))
        supervisions.append(
            lhotse.SupervisionSegment(recording.id, recording.id, 0.0, recording.duration, text=text, speaker="toy")
        )
    manifest_dir, fbank_dir = root / "manifests", root / "fbank"
    manifest_dir.mkdir()
    for split, part in (("train", slice(0, 30)), ("dev", slice(30, 40))):
        lhotse.RecordingSet.from_recordings(recordings[part]).to_file(manifest_dir / f"toy_recordings_{split}.jsonl.gz")
        lhotse.SupervisionSet.from_segments(supervisions[part]).to_file(
            manifest_dir / f"toy_supervisions_{split}.jsonl.gz"
        )
    flags = ["--corpus", "toy", "--splits", "train dev", "--manifest-dir", str(manifest_dir)]
    run(get_parser().parse_args([*flags, "--output-dir", str(fbank_dir)]))
    return ToyCorpus(root / "wav", manifest_dir, fbank_dir, load_cuts(fbank_dir, "toy", "train"))
