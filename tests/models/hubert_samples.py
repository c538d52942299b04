"""Small HuBERTs with weights that count, and a padded batch of noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.models.hubert import Hubert

BASE = HubertConfig(
    conv_dims=(16,), d_model=32, num_layers=3, num_heads=4, ffn_dim=48, positions_kernel=6, positions_groups=4
)
LARGE = replace(BASE, conv_norm="layer", norm_first=True, positions_kernel=5)
BOTH = pytest.mark.parametrize("config", [BASE, LARGE], ids=["base", "large"])
LENS = torch.tensor([9000, 5321, 2400])


def random_model(config: HubertConfig, seed: int = 0) -> Hubert:
    """Weights far from their start, norms and biases included, so that each of them counts."""
    torch.manual_seed(seed)
    model = Hubert(config).eval()
    for name, p in model.named_parameters():
        nn.init.normal_(p, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.3 if p.dim() < 2 else 0.15)
    return model


def waveforms() -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(len(LENS), int(LENS.max())) * 0.3
    return x * (torch.arange(x.size(1)) < LENS[:, None])
