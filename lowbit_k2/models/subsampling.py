"""Two strided convolutions that turn 10 ms feature frames into 40 ms encoder frames."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def subsampled_length(num_frames):
    """Encoder frames for `num_frames` feature frames (int or integer tensor): two valid 3-wide, stride-2 steps."""
    return ((num_frames - 1) // 2 - 1) // 2


class Conv2dSubsampling(nn.Module):
    """conv2d 3x3/2, ReLU, conv2d 3x3/2, ReLU, linear: (N, T, F) -> (N, ((T-1)//2-1)//2, d_model).

    No padding is used, so that an output frame of one utterance never looks at the padding behind it.
    """

    def __init__(self, num_features: int, channels: int, d_model: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, kernel_size=3, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, stride=2)
        self.out = nn.Linear(channels * subsampled_length(num_features), d_model)

    def forward(self, features: Tensor) -> Tensor:
        x = F.relu(self.conv1(features[:, None]))  # (N, C, T1, F1)
        x = F.relu(self.conv2(x))  # (N, C, T', F')
        x = x.transpose(1, 2).flatten(2)  # (N, T', C * F')
        return self.out(x)
