"""Factorised TDNN (Povey et al. 2018): each layer a narrow linear factor and a wide affine map, both over two frames.

The factor is held semi-orthogonal by `lowbit_k2.train.orthogonal`. Neighbours beyond an utterance's ends are zeros,
those of padding included, so that a batch gives what its utterances give alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.core.encoders import TdnnfConfig
from lowbit_k2.models.lhuc import HiddenLayer
from lowbit_k2.models.masking import MaskedBatchNorm, valid_frames


def norm(size: int) -> MaskedBatchNorm:
    """Kaldi's batch normalisation, which has no learned scale or offset."""
    return MaskedBatchNorm(size, affine=False)


def shifted(x: Tensor, frames: int) -> Tensor:
    """x (N, T, C) with frame t replaced by frame t + `frames`, zeros where there is none."""
    if frames == 0:
        return x
    kept = x[:, frames:] if frames > 0 else x[:, :frames]
    return F.pad(kept, (0, 0, 0, frames) if frames > 0 else (0, 0, -frames, 0))


class TdnnfLayer(nn.Module):
    """factor over (t - stride, t), affine over (t, t + stride), ReLU, BatchNorm, dropout, bypass."""

    def __init__(self, width: int, bottleneck: int, stride: int, bypass: float) -> None:
        """stride: in frames of this layer's input."""
        super().__init__()
        reach = 2 if stride else 1
        self.factor = nn.Linear(reach * width, bottleneck, bias=False)
        self.affine = nn.Linear(reach * bottleneck, width)
        self.norm = norm(width)
        self.stride, self.bypass = stride, bypass

    def forward(self, x: Tensor, mask: Tensor, dropped: float = 0.0) -> Tensor:
        """x (N, T, C), zero where mask (N, T) is False; dropped: rate of the dropout -> (N, T, C), likewise."""
        both = x if not self.stride else torch.cat([shifted(x, -self.stride), x], dim=2)
        narrow = self.factor(both) * mask[..., None]  # (N, T, B)
        both = narrow if not self.stride else torch.cat([narrow, shifted(narrow, self.stride)], dim=2)
        out = self.norm(F.relu(self.affine(both)), mask)
        if self.training and dropped > 0.0:
            out = out * time_mask(out, dropped)
        return (out + self.bypass * x) * mask[..., None]


def time_mask(x: Tensor, rate: float) -> Tensor:
    """(N, 1, C): dropout of whole channels, uniform in 1 - 2 rate to 1 + 2 rate, as Kaldi's continuous dropout."""
    return torch.empty(x.size(0), 1, x.size(2), dtype=x.dtype, device=x.device).uniform_(1 - 2 * rate, 1 + 2 * rate)


class Prefinal(nn.Module):
    """Linear factor, affine, ReLU, BatchNorm, linear, BatchNorm."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.factor = nn.Linear(width, size, bias=False)
        self.affine, self.norm = nn.Linear(size, width), norm(width)
        self.out, self.out_norm = nn.Linear(width, size, bias=False), norm(size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(F.relu(self.affine(self.factor(x))), mask)
        return self.out_norm(self.out(x), mask)  # (N, T, size)


class TdnnfEncoder(nn.Module):
    """Features to encoder frames at a third of the rate.

    Attributes:
      dropped: rate of the dropout now, which a schedule sets; 0 at first.
    """

    def __init__(self, config: TdnnfConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.input, self.input_norm = nn.Linear(3 * config.num_features, width), norm(width)
        self.slow = config.first_slow_layer
        self.layers = nn.ModuleList(
            TdnnfLayer(width, bottleneck, stride if i < self.slow else stride // 3, config.bypass)
            for i, (bottleneck, stride) in enumerate(zip(config.layer_bottlenecks, config.layer_strides, strict=True))
        )
        self.prefinal = Prefinal(width, config.d_model)
        self.dropped = 0.0

    def hidden_layers(self) -> list[HiddenLayer]:
        """What LHUC scales: every ReLU layer behind its BatchNorm and, in TDNN-F layers, before the bypass."""
        norms = [self.input_norm, *(layer.norm for layer in self.layers), self.prefinal.norm]
        return [(norm, self.config.hidden_dim) for norm in norms]

    def forward(self, inputs: Tensor, input_lens: Tensor) -> tuple[Tensor, Tensor]:
        """inputs (N, T, F), input_lens (N,) -> (encoder_out (N, T', d_model), encoder_out_lens (N,))."""
        lens, mask = self.config.output_lens(input_lens), valid_frames(input_lens, inputs.size(1))
        x = (inputs * mask[..., None]).float()
        x = torch.cat([shifted(x, -1), x, shifted(x, 1)], dim=2)  # (N, T, 3 F)
        x = self.input_norm(F.relu(self.input(x)), mask) * mask[..., None]
        for i, layer in enumerate(self.layers):
            if i == self.slow:
                x, mask = x[:, ::3], mask[:, ::3]  # (N, T', C)
            x = layer(x, mask, self.dropped)
        if self.slow == len(self.layers):
            x, mask = x[:, ::3], mask[:, ::3]
        return self.prefinal(x, mask), lens
