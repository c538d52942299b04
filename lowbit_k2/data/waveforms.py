"""Batches of audio as samples, for models that read these; with the labels of their frames where there are such."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.hubert import SAMPLING_RATE
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import load_samples
from lowbit_k2.data.frame_labels import FrameLabels

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

SMALLEST_VARIANCE = 1e-7  # of an utterance, that samples are divided by the root of


class WaveformModule(AsrDataModule):
    """As AsrDataModule, but inputs are samples (N, S) at 16 kHz, and targets labels (N, T) where there are any."""

    def __init__(
        self,
        config: DataConfig,
        labels: FrameLabels | None = None,
        normalize: bool = False,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        """
        Args:
          labels: one for each frame of the network's output.
          normalize: bring each utterance to mean 0 and variance 1, as models with norms in front want it.
        """
        super().__init__(config, FeatureConfig(sampling_rate=SAMPLING_RATE), world_size, rank)
        self.labels, self.normalize = labels, normalize

    def load(self, cut: Cut) -> Tensor:
        """Samples of one cut, (S,)."""
        samples = load_samples(cut, self.config.allow_commands)
        if not self.normalize:
            return samples
        variance, mean = torch.var_mean(samples, unbiased=False)
        return (samples - mean) / (variance + SMALLEST_VARIANCE).sqrt()

    def read_batch(self, cuts: CutSet, noise_epoch: int | None = None) -> tuple[Batch | None, dict[str, str]]:
        batch, unread = super().read_batch(cuts, noise_epoch)
        if batch is not None and self.labels is not None:
            batch = replace(batch, targets=self.labels.of(batch.ids))
        return batch, unread
