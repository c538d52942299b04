"""What the data part hands to training and decoding: padded inputs with texts and ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Some utterances side by side.

    inputs: what the model takes, padded behind each utterance: here features (N, T, F) float32, normalised as the
      `FeatureConfig` says and padded with 0; waveforms (N, T) or tokens (N, T) fit as well.
    input_lens: (N,) int64, valid positions of each; T is the largest of them.
    texts: transcripts, words separated by single spaces.
    ids: names of the cuts.
    targets: what is to be learnt, as the criterion takes it; None: token ids of `texts`, which the trainer makes.
    """

    inputs: Tensor
    input_lens: Tensor
    texts: list[str]
    ids: list[str]
    targets: Any = None

    def __post_init__(self) -> None:
        sizes = len(self.inputs), len(self.input_lens), len(self.texts), len(self.ids)
        assert len(set(sizes)) == 1, sizes

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        targets = self.targets.to(device) if isinstance(self.targets, Tensor) else self.targets
        return replace(self, inputs=self.inputs.to(device), input_lens=self.input_lens.to(device), targets=targets)

    def of(self, rows: Sequence[int]) -> Batch:
        """Some of its utterances, padded no further than they need."""
        assert self.targets is None, "targets are made for whole batches"
        lens = self.input_lens[list(rows)]
        inputs = self.inputs[list(rows), : int(lens.max())]
        return Batch(inputs, lens, [self.texts[n] for n in rows], [self.ids[n] for n in rows])


def collate(features: Sequence[Tensor], texts: Sequence[str], ids: Sequence[str]) -> Batch:
    """Pad utterances (T_n, F), or (T_n,), to one batch, in the order given."""
    assert len(features) == len(texts) == len(ids), (len(features), len(texts), len(ids))
    lens = torch.tensor([len(matrix) for matrix in features], dtype=torch.int64)
    padded = pad([matrix.numpy() for matrix in features])
    return Batch(torch.from_numpy(padded), lens, list(texts), list(ids))


def pad(rows: Sequence[np.ndarray], value: float = 0) -> np.ndarray:
    """Arrays (T_n, ...) side by side, filled up behind with `value`, (N, T, ...).

    Copied by numpy, on one thread: on a busy machine torch waits for its threads 20 times as long as this takes.
    """
    assert len({row.shape[1:] for row in rows}) == 1, [row.shape for row in rows]
    padded = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded
