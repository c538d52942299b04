"""Small encoders of both kinds that can be searched, and what a narrower one of them is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowbit_k2.core.encoders import ConformerConfig, TdnnfConfig
from lowbit_k2.core.models import CtcConfig, ModelConfig
from lowbit_k2.models import make_model
from lowbit_k2.search.space import SearchSpace

TDNNF = CtcConfig(
    TdnnfConfig(num_features=20, d_model=8, num_layers=4, hidden_dim=12, bottlenecks=(6,), strides=(1, 0, 3)),
    vocab_size=6,
)
CONFORMER = CtcConfig(
    ConformerConfig(
        num_features=20, d_model=16, num_layers=3, ffn_dim=(24,), conv_kernel=5, subsampling_channels=4, dropout=0.0,
        ffn_dropout=0.0,
    ),
    vocab_size=6,
)  # fmt: skip
CANDIDATES = {"tdnnf": (2, 3, 6), "conformer": (5, 16, 24)}
MODELS = [TDNNF, CONFORMER]


def space_of(config: ModelConfig) -> SearchSpace:
    return SearchSpace.of(config.encoder, CANDIDATES[config.encoder.kind])


def wide_model(config: ModelConfig) -> nn.Module:
    """With all layers at the last candidate."""
    torch.manual_seed(0)
    space = space_of(config)
    return make_model(space.apply(config, space.largest))


def narrow_model(wide: nn.Module, choice: Sequence[int]) -> nn.Module:
    """Really built at the widths of a choice, its weights the leading parts of those of the wide one."""
    space = space_of(wide.config)
    model = make_model(space.apply(wide.config, choice))
    state = wide.state_dict()
    widths = space.widths(choice)
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["encoder", "layers"]:
            width = widths[int(parts[2])]
            tensor.copy_(leading(state[name], ".".join(parts[3:]), tensor.shape, width))
        else:
            tensor.copy_(state[name])
    return model


def leading(whole: Tensor, name: str, shape: torch.Size, width: int) -> Tensor:
    """The part of a tensor of a layer that a narrower layer has."""
    if name == "affine.weight" and whole.shape[1] != shape[1] and shape[1] == 2 * width:  # units of two frames
        first, second = whole.chunk(2, dim=1)
        return torch.cat([first[:, :width], second[:, :width]], dim=1)
    return whole[tuple(slice(size) for size in shape)]


def inputs_of(config: ModelConfig, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(2, 47, F) and lengths."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 47, config.num_features, generator=generator), torch.tensor([47, 36])
