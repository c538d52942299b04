"""A corpus of random features with texts, its units, and the flags of a model that trains on it in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lhotse import CutSet, Features, MonoCut, NumpyFilesWriter, Recording, SupervisionSegment

from lowbit_k2.data.features import FeatureConfig, write_feature_config
from lowbit_k2.data.tokenizer import BPE_MODEL
from lowbit_k2.recipe.train_bpe import train_sentencepiece

FEATURES = FeatureConfig(num_mel_bins=20)
WORDS = ("YES", "NO", "GO")
TINY = ["--d-model=8", "--num-layers=2", "--num-heads=2", "--ffn-dim=16", "--subsampling-channels=2", "--conv-kernel=3"]


@dataclass(frozen=True)
class Corpus:
    """Folders and cuts; the manifests themselves are not on disk."""

    manifest_dir: Path
    lang_dir: Path
    cuts: CutSet

    @property
    def where(self) -> list[str]:
        return ["--manifest-dir", str(self.manifest_dir), "--lang-dir", str(self.lang_dir)]


def make_lang(folder: Path, text: str = " ".join(WORDS)) -> Path:
    folder.mkdir(parents=True)
    (folder / BPE_MODEL).write_bytes(train_sentencepiece([text], "char", 0))
    return folder


def make_corpus(folder: Path, number: int = 24) -> Corpus:
    """`number` cuts of 0.6 to 0.9 s."""
    manifest_dir = folder / "fbank"
    write_feature_config(manifest_dir, FEATURES)
    with NumpyFilesWriter(manifest_dir / "storage") as writer:
        cuts = [make_cut(f"c{i:02}", 60 + 10 * (i % 4), WORDS[i % 3], writer) for i in range(number)]
    return Corpus(manifest_dir, make_lang(folder / "lang"), CutSet.from_cuts(cuts))


def make_cut(name: str, num_frames: int, text: str, writer: NumpyFilesWriter) -> MonoCut:
    seconds = num_frames / 100
    matrix = torch.randn(num_frames, 20, generator=torch.Generator().manual_seed(num_frames)).numpy()
    features = Features(
        type="fbank",
        num_frames=num_frames,
        num_features=20,
        frame_shift=0.01,
        sampling_rate=16000,
        start=0.0,
        duration=seconds,
        storage_type=writer.name,
        storage_path=str(writer.storage_path),
        storage_key=writer.write(name, matrix),
        recording_id=name,
        channels=0,
    )
    recording = Recording(name, [], 16000, round(16000 * seconds), seconds)
    supervision = SupervisionSegment(name, name, 0.0, seconds, text=text)
    return MonoCut(name, 0.0, seconds, 0, supervisions=[supervision], features=features, recording=recording)
