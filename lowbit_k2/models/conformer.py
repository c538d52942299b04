"""Conformer encoder (arXiv 2005.08100; sizes of arXiv 2505.21245 in the preset `paper`)."""

from __future__ import annotations

from torch import Tensor, nn

from lowbit_k2.core.encoders import ConformerConfig
from lowbit_k2.models.attention import RelativeSelfAttention, relative_positions
from lowbit_k2.models.convolution import ConvolutionModule
from lowbit_k2.models.dropout import dropout
from lowbit_k2.models.lhuc import HiddenLayer
from lowbit_k2.models.masking import valid_frames
from lowbit_k2.models.subsampling import Conv2dSubsampling


class FeedForward(nn.Module):
    """linear, swish, linear over the last dimension."""

    def __init__(self, d_model: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(d_model, ffn_dim)
        self.swish = nn.SiLU()  # a module, for LHUC to scale what comes out of it
        self.w2 = nn.Linear(ffn_dim, d_model)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(dropout(self.swish(self.w1(x)), self.dropout, self.training))


class ConformerLayer(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward, each pre-normed with a residual."""

    def __init__(self, config: ConformerConfig, ffn_dim: int) -> None:
        super().__init__()
        d = config.d_model
        self.norm_ff1, self.ff1 = nn.LayerNorm(d), FeedForward(d, ffn_dim, config.ffn_dropout)
        self.norm_attention = nn.LayerNorm(d)
        self.attention = RelativeSelfAttention(d, config.num_heads, config.attention_dropout)
        self.norm_conv = nn.LayerNorm(d)
        self.conv = ConvolutionModule(d, config.conv_kernel, config.conv_norm)
        self.norm_ff2, self.ff2 = nn.LayerNorm(d), FeedForward(d, ffn_dim, config.ffn_dropout)
        self.norm_out = nn.LayerNorm(d)
        self.dropout_rate = config.dropout

    def dropout(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout_rate, self.training)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """x (N, T, C), positions (2T-1, C), mask (N, T) -> (N, T, C)."""
        x = x + 0.5 * self.dropout(self.ff1(self.norm_ff1(x)))
        x = x + self.dropout(self.attention(self.norm_attention(x), positions, mask))
        x = x + self.dropout(self.conv(self.norm_conv(x), mask))
        x = x + 0.5 * self.dropout(self.ff2(self.norm_ff2(x)))
        return self.norm_out(x)


class ConformerEncoder(nn.Module):
    """Features to encoder frames at a quarter of the rate."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        num_bands = config.output_lens(config.num_features)
        self.subsampling = Conv2dSubsampling(num_bands, config.subsampling_channels, config.d_model)
        self.layers = nn.ModuleList(ConformerLayer(config, ffn_dim) for ffn_dim in config.layer_ffn_dims)
        self.norm = nn.LayerNorm(config.d_model)
        self.input_scale = config.d_model**0.5  # keeps the signal's size beside the residual branches, as in ESPnet
        self.dropout_rate = config.dropout

    def hidden_layers(self) -> list[HiddenLayer]:
        """What LHUC scales: the hidden units of both feed-forward modules of each block, behind the swish."""
        return [(ff.swish, ff.w1.out_features) for layer in self.layers for ff in (layer.ff1, layer.ff2)]

    def forward(self, inputs: Tensor, input_lens: Tensor) -> tuple[Tensor, Tensor]:
        """inputs (N, T, F), input_lens (N,) -> (encoder_out (N, T', C), encoder_out_lens (N,)); T' = output_lens(T)."""
        num_frames, least = inputs.size(1), self.config.min_frames
        assert num_frames >= least, f"an utterance needs at least {least} frames, got {num_frames}"
        lens = self.config.output_lens(input_lens)
        # the residual stream stays in float32 under autocast
        x = self.subsampling(inputs).float() * self.input_scale  # (N, T', C)
        mask = valid_frames(lens, x.size(1))
        x = dropout(x * mask[..., None], self.dropout_rate, self.training)
        positions = relative_positions(x.size(1), x.size(2), x)
        for layer in self.layers:
            x = layer(x, positions, mask)
        return self.norm(x), lens
