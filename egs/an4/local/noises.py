"""Which of ESC-10's noises are for training, and which test copies got another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2.data.noisy import find_noises
from lowbit_k2.fileio import write_json
from lowbit_k2.recipe.compute_fbank import FbankConfig, FeatureConfig, compute_fbank
from lowbit_k2.recipe.prepare_noise import prepare_noise

if TYPE_CHECKING:
    from lhotse import CutSet


def for_training(names: Iterable[str]) -> list[str]:
    """The first clip of each class, where the others are of other recordings; the other classes are for testing only.

    Args:
      names: as ESC-10 has them, `CLASS/FOLD-RECORDING-TAKE.ogg`.
    """
    chosen = []
    for _, clips in groupby(sorted(names), key=lambda name: name.split("/")[0]):
        first, *others = clips
        if all(recording_of(name) != recording_of(first) for name in others):
            chosen.append(first)
    return chosen


def recording_of(name: str) -> str:
    """CLASS/1-28135-B.ogg -> 28135: two takes of one are alike."""
    return name.split("/")[-1].split("-")[1]


def prepare_training_noise(noise_dir: Path, data: Path) -> None:
    """Manifests and features of the noises for training, beside those of the speech."""
    noises = find_noises(noise_dir)
    prepare_noise({name: noises[name] for name in for_training(noises)}, data / "manifests")
    config = FbankConfig(data / "fbank", "musan", ("noise",), data / "manifests")
    compute_fbank(config, FeatureConfig())


def write_clips(path: Path, noise_dir: Path, copies: Mapping[str, CutSet]) -> None:
    """The names of all noises, and of the one that each utterance of a set got: what the tables of noise need.

    Args:
      copies: a noisy copy of each set.
    """
    got = {split: {cut.id: cut.custom["noise"] for cut in cuts} for split, cuts in copies.items()}
    write_json(path, {"noises": list(find_noises(noise_dir)), **got})
