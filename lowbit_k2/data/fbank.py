"""lhotse's filter banks of audio of any length: long audio goes through the extractor piece by piece."""

from __future__ import annotations

import math

import numpy as np
import torch
from lhotse import Fbank
from torch import Tensor

PIECE = 6000  # frames at a time: at 16 kHz the extractor takes some 5 kB for each


class LongFbank(Fbank):
    """lhotse's `Fbank`, whose memory does not grow with the audio beyond a piece.

    Frames that lie at the edge of a piece are computed with the samples on both sides, so that all frames are those of
    the whole (bitwise where there is one piece, within rounding of the matrix products otherwise).
    """

    def extract(self, samples: np.ndarray | Tensor, sampling_rate: int) -> np.ndarray | Tensor:
        """(num_samples,) or (1, num_samples) -> (T, F), of the same kind."""
        shift = math.floor(self.config.frame_shift * sampling_rate)
        num_samples = samples.shape[-1]
        total = (num_samples + shift // 2) // shift  # frames
        if total <= PIECE:
            return super().extract(samples, sampling_rate)
        margin = math.ceil(self.config.frame_length / self.config.frame_shift)
        features = np.empty((total, self.config.num_filters), dtype=np.float32)
        for first in range(0, total, PIECE):
            last = min(first + PIECE, total)
            start, stop = max(0, first - margin), last + margin
            end = stop * shift if stop < total else num_samples
            part = super().extract(samples[..., start * shift : end], sampling_rate)
            features[first:last] = torch.as_tensor(part).cpu()[first - start : last - start]
        return torch.from_numpy(features) if isinstance(samples, Tensor) else features
