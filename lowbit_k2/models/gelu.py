"""GELU whose gradient is right in torch 1.13 as well."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), exact. On a CPU torch 1.13 takes memory that nobody has written for the gradient of a transposed
    tensor: here both it and `x` are laid out in order first."""
    y = F.gelu(x.contiguous())
    if y.requires_grad:
        y.register_hook(lambda grad: grad.contiguous())
    return y
