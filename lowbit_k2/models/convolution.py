"""The Conformer's convolution module (arXiv 2005.08100, section 2.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.models.masking import MaskedBatchNorm


class ConvolutionModule(nn.Module):
    """pointwise, GLU, depthwise, norm, swish, pointwise over (N, T, C).

    The pointwise convolutions are linear layers: the same matrices without two transpositions.
    """

    def __init__(self, d_model: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.pointwise1 = nn.Linear(d_model, 2 * d_model)
        self.depthwise = nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model)
        self.norm = MaskedBatchNorm(d_model) if norm == "batch" else nn.LayerNorm(d_model)
        self.pointwise2 = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (N, T, C), mask (N, T) True on valid frames."""
        x = F.glu(self.pointwise1(x), dim=-1)
        x = x * mask[..., None]  # what lies behind an utterance must look like the edge of the signal
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2).float()  # (N, T, C)
        x = self.norm(x, mask) if isinstance(self.norm, MaskedBatchNorm) else self.norm(x)
        return self.pointwise2(F.silu(x))
