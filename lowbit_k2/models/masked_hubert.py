"""HuBERT as it is pre-trained (arXiv 2106.07447): classes of the frames that were hidden from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.core.hubert import MaskedHubertConfig
from lowbit_k2.models.hubert import Hubert

TEMPERATURE = 0.1  # that cosines are divided by


class MaskedFrames(NamedTuple):
    """What a pass over masked audio gives.

    out: (N, T, d_model), which `head` tells classes from.
    lens: (N,), valid frames.
    features: (N, T, C), the extractor's frames, in which nothing is masked.
    valid: (N, T), True on valid frames.
    """

    out: Tensor
    lens: Tensor
    features: Tensor
    valid: Tensor


class MaskedHead(nn.Module):
    """What pre-training alone needs: the vector in the place of hidden frames, and the classes."""

    def __init__(self, config: MaskedHubertConfig) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.rand(config.d_model))
        self.projection = nn.Linear(config.d_model, config.code_dim)
        self.codewords = nn.Embedding(config.vocab_size, config.code_dim)

    def forward(self, out: Tensor) -> Tensor:
        """logits = cos(A o, e_class) / 0.1; (M, d_model) -> (M, classes) in float32."""
        with torch.autocast(out.device.type, enabled=False):
            projected = F.normalize(self.projection(out.float()), dim=-1)  # (M, code_dim)
            return projected @ F.normalize(self.codewords.weight, dim=-1).T / TEMPERATURE


class MaskedHubert(Hubert):
    """A HuBERT, called like one, that can also tell the classes of frames which it does not see."""

    training_only = ("head",)

    def __init__(self, config: MaskedHubertConfig, for_training: bool = True) -> None:
        super().__init__(config)
        self.head = MaskedHead(config) if for_training else None

    def predict(self, waveforms: Tensor, lens: Tensor | None, masked: Tensor) -> MaskedFrames:
        """Arguments as of `forward`; masked (N, T) is True on the frames that are hidden, valid ones alone."""
        lens, valid, features = self.extract(waveforms, lens)
        x = torch.where(masked[..., None], self.head.mask.to(features.dtype), self.projection(features))
        out = self.contextual(x, lens, valid).out
        return MaskedFrames(out, lens, features, valid)
