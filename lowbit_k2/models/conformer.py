"""Conformer encoder with a CTC head (arXiv 2005.08100; sizes of arXiv 2505.21245 in the preset `paper`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.errors import UserError
from lowbit_k2.models.attention import RelativeSelfAttention, relative_positions
from lowbit_k2.models.convolution import ConvolutionModule
from lowbit_k2.models.dropout import dropout
from lowbit_k2.models.masking import valid_frames
from lowbit_k2.models.subsampling import Conv2dSubsampling, subsampled_length


@dataclass(frozen=True)
class ConformerConfig:
    """Everything needed to rebuild the model; stored in checkpoints and packed files."""

    num_features: int = 80
    vocab_size: int = 500
    d_model: int = 256
    num_layers: int = 12
    num_heads: int = 4
    ffn_dim: int = 2048
    conv_kernel: int = 31  # frames of 40 ms
    subsampling_channels: int = 256
    dropout: float = 0.1  # on the output of every module of a block
    ffn_dropout: float = 0.1  # on the hidden units of the feed-forward modules
    attention_dropout: float = 0.0  # on the attention weights
    conv_norm: str = "batch"  # "batch" (the papers') or "layer"

    def __post_init__(self) -> None:
        sizes = ("num_features", "vocab_size", "d_model", "num_layers", "num_heads", "ffn_dim", "conv_kernel")
        for name in (*sizes, "subsampling_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"model config: {name} must be positive, got {getattr(self, name)}")
        for name in ("dropout", "ffn_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) <= 0.9:
                raise UserError(f"model config: {name} must be between 0 and 0.9, got {getattr(self, name)}")
        if self.d_model % (2 * self.num_heads):
            raise UserError(
                f"model config: d_model {self.d_model} must be a multiple of 2 x num_heads {self.num_heads}"
            )
        if self.conv_kernel % 2 == 0:
            raise UserError(f"model config: conv_kernel must be odd, got {self.conv_kernel}")
        if self.conv_norm not in ("batch", "layer"):
            raise UserError(f"model config: conv_norm must be batch or layer, got {self.conv_norm}")
        if subsampled_length(self.num_features) < 1:
            raise UserError(f"model config: num_features {self.num_features} is too small, need at least 7")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ConformerConfig:
        """A named size (see `PRESETS`) with single fields replaced."""
        if name not in PRESETS:
            raise UserError(f"unknown model preset '{name}': choose one of {', '.join(PRESETS)}")
        return replace(PRESETS[name], **overrides)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConformerConfig:
        """Rebuild from `to_dict`'s output; raises UserError on unknown or missing types of fields."""
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"this is no configuration of our Conformer: {error}") from None


PRESETS = {
    # about 1 M parameters: the embedded demo corpus on two CPU cores
    "demo": ConformerConfig(
        d_model=96, num_layers=4, ffn_dim=384, subsampling_channels=32, conv_kernel=15, ffn_dropout=0.0
    ),
    # about 2.1 M: AN4 on two CPU cores
    "tiny": ConformerConfig(
        d_model=144, num_layers=4, ffn_dim=576, subsampling_channels=32, conv_kernel=15, ffn_dropout=0.0
    ),
    # about 9 M, the size of Conformer-S
    "small": ConformerConfig(d_model=144, num_layers=16, ffn_dim=576, subsampling_channels=144),
    # about 29 M; 30 M as a transducer: the width of Conformer-M
    "medium": ConformerConfig(num_layers=17, ffn_dim=1024),
    # 34.03 M with 2000 pieces: the encoder of arXiv 2505.21245 with a CTC head
    "paper": ConformerConfig(),
    # about 118 M, the size of Conformer-L
    "large": ConformerConfig(d_model=512, num_layers=17, num_heads=8, ffn_dim=2048, subsampling_channels=512),
}


class FeedForward(nn.Module):
    """linear, swish, linear over the last dimension."""

    def __init__(self, d_model: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(d_model, ffn_dim)
        self.w2 = nn.Linear(ffn_dim, d_model)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(dropout(F.silu(self.w1(x)), self.dropout, self.training))


class ConformerLayer(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward, each pre-normed with a residual."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        d = config.d_model
        self.norm_ff1, self.ff1 = nn.LayerNorm(d), FeedForward(d, config.ffn_dim, config.ffn_dropout)
        self.norm_attention = nn.LayerNorm(d)
        self.attention = RelativeSelfAttention(d, config.num_heads, config.attention_dropout)
        self.norm_conv = nn.LayerNorm(d)
        self.conv = ConvolutionModule(d, config.conv_kernel, config.conv_norm)
        self.norm_ff2, self.ff2 = nn.LayerNorm(d), FeedForward(d, config.ffn_dim, config.ffn_dropout)
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
        self.subsampling = Conv2dSubsampling(config.num_features, config.subsampling_channels, config.d_model)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.input_scale = config.d_model**0.5  # keeps the signal's size beside the residual branches, as in ESPnet
        self.dropout_rate = config.dropout

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """features (N, T, F), feature_lens (N,) -> (encoder_out (N, T', C), encoder_out_lens (N,))."""
        lens = subsampled_length(feature_lens)
        # the residual stream stays in float32 under autocast
        x = self.subsampling(features).float() * self.input_scale  # (N, T', C)
        mask = valid_frames(lens, x.size(1))
        x = dropout(x * mask[..., None], self.dropout_rate, self.training)
        positions = relative_positions(x.size(1), x.size(2), x)
        for layer in self.layers:
            x = layer(x, positions, mask)
        return self.norm(x), lens


class ConformerCtc(nn.Module):
    """The encoder and one linear layer over the vocabulary; token 0 is the blank."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ConformerEncoder(config)
        self.ctc_head = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Log posteriors of the tokens.

        Args:
          features: (N, T, F), padded with anything; T >= 7.
          feature_lens: (N,), int64, frames of 10 ms.

        Returns:
          log_probs (N, T', V) in float32, natural logarithm, and their lengths (N,); T' = ((T-1)//2-1)//2.
        """
        assert features.size(1) >= 7, f"an utterance needs at least 7 feature frames, got {features.size(1)}"
        encoder_out, lens = self.encoder(features, feature_lens)
        logits = self.ctc_head(encoder_out)  # (N, T', V)
        return logits.float().log_softmax(dim=-1), lens
