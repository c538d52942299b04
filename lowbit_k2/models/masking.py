"""Lengths to masks, and a BatchNorm that sees valid frames only.

A padded batch must give what its utterances give alone; these are the two tools for that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def valid_frames(lens: Tensor, max_len: int) -> Tensor:
    """Boolean mask (N, T), True on the first `lens[n]` frames of row n."""
    return torch.arange(max_len, device=lens.device)[None, :] < lens[:, None]


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the channel dimension of (N, T, C) whose batch statistics leave padded frames out.

    With momentum 0, train mode normalises by the batch and leaves no trace in the buffers.
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalise x (N, T, C); mask (N, T) is True on valid frames. Padded frames come out as zeros in training."""
        every = x.flatten(0, 1)  # (N T, C)
        # by rows: a boolean mask and its gradient would go entry by entry
        valid = mask.flatten().nonzero().squeeze(1) if self.training else mask.new_empty(0)
        if len(valid) < 2:  # in eval mode, and because one frame has no variance
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(every, mean, var, self.weight, self.bias, False, 0.0, self.eps).view_as(x)  # (N, T, C)
        if self.num_batches_tracked is not None and self.momentum != 0.0:
            self.num_batches_tracked.add_(1)
        # momentum None is PyTorch's cumulative average, used when statistics are recalibrated
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        frames = F.batch_norm(
            every.index_select(0, valid),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            True,
            momentum,
            self.eps,
        )
        return frames.new_zeros(every.shape).index_copy(0, valid, frames).view_as(x)
