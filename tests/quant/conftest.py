"""A stand-in model: the parameter names of our Conformer without its arithmetic, small enough for exhaustive checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

D_MODEL, FFN, NUM_LAYERS, VOCAB, NUM_FEATURES = 20, 70, 3, 7, 15


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(D_MODEL, FFN), nn.Linear(FFN, D_MODEL)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.w1(x).relu())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(D_MODEL, D_MODEL) for _ in range(4))
        self.pos = nn.Linear(D_MODEL, D_MODEL, bias=False)
        self.pos_bias_u = nn.Parameter(torch.randn(2, D_MODEL // 2))
        self.pos_bias_v = nn.Parameter(torch.randn(2, D_MODEL // 2))

    def forward(self, x: Tensor) -> Tensor:
        gate = (self.query(x) + self.pos_bias_u.flatten()) * (self.key(x) + self.pos_bias_v.flatten())
        return self.out(gate.sigmoid() * self.value(x) + self.pos(x))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pointwise1, self.pointwise2 = nn.Linear(D_MODEL, 2 * D_MODEL), nn.Linear(D_MODEL, D_MODEL)
        self.depthwise = nn.Conv1d(D_MODEL, D_MODEL, 5, padding=2, groups=D_MODEL)
        self.norm = nn.BatchNorm1d(D_MODEL)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.glu(self.pointwise1(x)).transpose(1, 2)  # (N, C, T)
        return self.pointwise2(self.norm(self.depthwise(x)).transpose(1, 2))  # (N, T, C)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff1, self.ff2, self.attention, self.conv = FeedForward(), FeedForward(), Attention(), Convolution()
        self.norm_ff1, self.norm_attention, self.norm_conv, self.norm_ff2, self.norm_out = (
            nn.LayerNorm(D_MODEL) for _ in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        for norm, block in (
            (self.norm_ff1, self.ff1),
            (self.norm_attention, self.attention),
            (self.norm_conv, self.conv),
            (self.norm_ff2, self.ff2),
        ):
            x = x + block(norm(x))
        return self.norm_out(x)


class Subsampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, 2), nn.Conv2d(4, 4, 3, 2)
        self.out = nn.Linear(12, D_MODEL)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x[:, None]).relu())  # (N, 4, T', 3)
        return self.out(x.transpose(1, 2).flatten(2))  # (N, T', C)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.subsampling = Subsampling()
        self.layers = nn.ModuleList(Layer() for _ in range(NUM_LAYERS))
        self.norm = nn.LayerNorm(D_MODEL)

    def forward(self, x: Tensor) -> Tensor:
        x = self.subsampling(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class StandIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.ctc_head = Encoder(), nn.Linear(D_MODEL, VOCAB)

    def forward(self, features: Tensor) -> Tensor:
        """features (N, T, F) -> (N, T', V)."""
        return self.ctc_head(self.encoder(features))


@pytest.fixture
def make_model() -> Callable[[], StandIn]:
    """A factory of equal models."""

    def make(seed: int = 0) -> StandIn:
        torch.manual_seed(seed)
        return StandIn()

    return make


@pytest.fixture
def features() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 23, NUM_FEATURES, generator=generator)
