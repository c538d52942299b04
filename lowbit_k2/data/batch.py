"""What the data part hands to training and decoding: padded features with texts and ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Some utterances side by side.

    features: (N, T, F) float32, normalised as the `FeatureConfig` says, padded with 0 behind each utterance.
    feature_lens: (N,) int64, frames of each utterance; T is the largest of them.
    texts: transcripts, words separated by single spaces.
    ids: names of the cuts.
    """

    features: Tensor
    feature_lens: Tensor
    texts: list[str]
    ids: list[str]


def collate(features: Sequence[Tensor], texts: Sequence[str], ids: Sequence[str]) -> Batch:
    """Pad utterances (T_n, F) to one batch, in the order given."""
    lens = torch.tensor([len(matrix) for matrix in features], dtype=torch.int64)
    # Copied by numpy, on one thread: on a busy machine torch waits for its threads 20 times as long as this takes.
    padded = np.zeros((len(features), int(lens.max()), features[0].size(1)), dtype=np.float32)  # (N, T, F)
    for row, matrix in zip(padded, features, strict=True):
        row[: len(matrix)] = matrix.numpy()
    return Batch(torch.from_numpy(padded), lens, list(texts), list(ids))
