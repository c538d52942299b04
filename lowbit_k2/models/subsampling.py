"""Two strided convolutions that turn 10 ms feature frames into 40 ms encoder frames."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Conv2dSubsampling(nn.Module):
    """conv2d 3x3/2, ReLU, conv2d 3x3/2, ReLU, linear: (N, T, F) -> (N, ((T-1)//2-1)//2, d_model).

    No padding is used, so that an output frame of one utterance never looks at the padding behind it.
    """

    def __init__(self, num_bands: int, channels: int, d_model: int) -> None:
        """num_bands: what the two convolutions leave of the F features."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, kernel_size=3, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, stride=2)
        self.out = nn.Linear(channels * num_bands, d_model)

    def forward(self, features: Tensor) -> Tensor:
        x = F.relu(self.conv1(features[:, None]))  # (N, C, T1, F1)
        x = F.relu(self.conv2(x))  # (N, C, T', F')
        x = x.transpose(1, 2).flatten(2)  # (N, T', C * F')
        return self.out(x)
