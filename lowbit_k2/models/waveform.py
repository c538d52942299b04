"""What stands in front of HuBERT's Transformer: convolutions over audio, a projection, a convolution for positions."""

from __future__ import annotations

from torch import Tensor, nn

from lowbit_k2.core.hubert import GROUP, HubertConfig
from lowbit_k2.models.dropout import dropout
from lowbit_k2.models.gelu import gelu
from lowbit_k2.models.masking import valid_frames


class ChannelNorm(nn.GroupNorm):
    """GroupNorm with a group per channel over (N, C, T), whose statistics leave padding out."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor, lens: Tensor | None = None) -> Tensor:
        """x (N, C, T); lens (N,): valid frames of each, None for all. What lies behind them stays finite."""
        if lens is None:
            return super().forward(x)
        mask = valid_frames(lens, x.size(2)).to(x.dtype)[:, None]  # (N, 1, T)
        counts = lens.clamp(min=1).to(x.dtype)[:, None, None]
        mean = (x * mask).sum(dim=2, keepdim=True) / counts  # (N, C, 1)
        centred = x - mean
        variance = (centred * mask).square().sum(dim=2, keepdim=True) / counts  # (N, C, 1)
        return centred * (variance + self.eps).rsqrt() * self.weight[:, None] + self.bias[:, None]


class FrameNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, T)."""

    def forward(self, x: Tensor, lens: Tensor | None = None) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvLayer(nn.Module):
    """convolution without padding, norm (where it has one), GELU."""

    def __init__(self, config: HubertConfig, layer: int) -> None:
        super().__init__()
        dims = (1, *config.layer_conv_dims)
        kernel, stride = config.conv_kernels[layer], config.conv_strides[layer]
        self.conv = nn.Conv1d(dims[layer], dims[layer + 1], kernel, stride, bias=config.conv_bias)
        nn.init.kaiming_normal_(self.conv.weight)
        if config.conv_norm == GROUP:
            self.norm = ChannelNorm(dims[1]) if layer == 0 else None
        else:
            self.norm = FrameNorm(dims[layer + 1])

    def forward(self, x: Tensor, lens: Tensor | None) -> Tensor:
        """x (N, C, T) -> (N, C', T'); lens (N,) are valid frames of the output, None for all."""
        x = self.conv(x)
        return gelu(x if self.norm is None else self.norm(x, lens))


class FeatureProjection(nn.Module):
    """LayerNorm and a linear layer: the extractor's frames in the Transformer's width."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        channels = config.layer_conv_dims[-1]
        self.norm = nn.LayerNorm(channels) if config.projection_norm else nn.Identity()
        self.linear = nn.Linear(channels, config.d_model)
        self.dropout_rate = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) -> (N, T, d_model)."""
        return dropout(self.linear(self.norm(x)), self.dropout_rate, self.training)


class PositionalConvolution(nn.Module):
    """A grouped convolution over many frames in the place of position embeddings, then GELU.

    Its published weights are under weight norm; here it has the weight itself.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        d, kernel, groups = config.d_model, config.positions_kernel, config.positions_groups
        self.conv = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(self.conv.weight, std=(4.0 / (kernel * d)) ** 0.5)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) -> (N, T, C); an even kernel's window reaches one frame further back than forth."""
        return gelu(self.conv(x.transpose(1, 2))[..., : x.size(1)]).transpose(1, 2)
