"""Dropout whose random numbers cost little on a CPU.

PyTorch draws one Bernoulli number per element on one core, which takes a tenth of a small Conformer's update. Here
one 64-bit draw serves eight elements: each byte is compared with a threshold. The rate is thereby rounded to a
multiple of 1/256, and the scale of what is kept to that rate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero elements with probability `rate` (rounded to 1/256 on a CPU) and scale the others to keep the mean."""
    if not training or rate == 0.0:
        return x
    if x.is_cuda:
        return F.dropout(x, rate, training)
    threshold = round(rate * 256)
    draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
    return x * kept.to(x.dtype).mul_(256 / (256 - threshold))
