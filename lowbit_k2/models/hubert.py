"""HuBERT (arXiv 2106.07447), which as a network is wav2vec 2.0 (arXiv 2006.11477): audio to hidden states."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from lowbit_k2.core.hubert import GROUP, HubertConfig
from lowbit_k2.errors import UserError
from lowbit_k2.models.dropout import dropout
from lowbit_k2.models.gelu import gelu
from lowbit_k2.models.masking import valid_frames
from lowbit_k2.models.waveform import ConvLayer, FeatureProjection, PositionalConvolution
from lowbit_k2.quant.product import MatrixProduct

INIT_STD = 0.02  # of linear layers, as in both papers' code


class Representations(NamedTuple):
    """What a pass gives.

    out: (N, T, d_model), the network's output; the last hidden state, normalised where norms come first.
    lens: (N,), valid frames.
    hidden_states: the Transformer's input and the output of each layer, num_layers + 1 times (N, T, d_model).
    attentions: the weights of each layer, (N, H, T, T), where they were asked for.
    """

    out: Tensor
    lens: Tensor
    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...] = ()


class SelfAttention(nn.Module):
    """softmax(q k' / sqrt(d_head)) v. The two products are modules, as the matrices are: each can be quantized."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        d = config.d_model
        self.num_heads = config.num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        self.scores, self.context = MatrixProduct(), MatrixProduct()
        self.dropout_rate = config.attention_dropout

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, T, C), mask (N, T) True on valid frames -> (N, T, C), and the weights (N, H, T, T)."""
        n, t, c = x.shape
        query, key, value = (self._heads(part(x)) for part in (self.query, self.key, self.value))  # (N, H, T, D)
        scores = self.scores(query, key.transpose(2, 3)) * query.size(-1) ** -0.5  # (N, H, T, T)
        weights = scores.float().masked_fill(~mask[:, None, None, :], float("-inf")).softmax(dim=-1)
        used = dropout(weights, self.dropout_rate, self.training).to(value.dtype)
        context = self.context(used, value).transpose(1, 2).reshape(n, t, c)  # (N, T, C)
        return self.out(context), weights

    def _heads(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        return x.view(n, t, self.num_heads, c // self.num_heads).transpose(1, 2)  # (N, H, T, D)


class FeedForward(nn.Module):
    """linear, GELU, linear."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.d_model, config.ffn_dim)
        self.w2 = nn.Linear(config.ffn_dim, config.d_model)
        self.dropout_rate = config.ffn_dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(dropout(gelu(self.w1(x)), self.dropout_rate, self.training))


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward with residuals; norms in front of both, or behind both sums."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.attention, self.norm_attention = SelfAttention(config), nn.LayerNorm(config.d_model)
        self.ff, self.norm_ff = FeedForward(config), nn.LayerNorm(config.d_model)
        self.norm_first, self.dropout_rate = config.norm_first, config.dropout

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, T, C), mask (N, T) -> (N, T, C), and the attention weights (N, H, T, T)."""
        if self.norm_first:
            attended, weights = self.attention(self.norm_attention(x), mask)
            x = x + self.dropout(attended)
            return x + self.dropout(self.ff(self.norm_ff(x))), weights
        attended, weights = self.attention(x, mask)
        x = self.norm_attention(x + self.dropout(attended))
        return self.norm_ff(x + self.dropout(self.ff(x))), weights

    def dropout(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout_rate, self.training)


class Transformer(nn.Module):
    """The layers, and the norm behind the last of them or, where norms come behind, in front of the first."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.norm_first, self.dropout_rate = config.norm_first, config.dropout

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """x (N, T, C), mask (N, T) -> output, hidden states, attention weights."""
        x = dropout(x if self.norm_first else self.norm(x), self.dropout_rate, self.training)
        hidden, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, mask)
            hidden.append(x)
            attentions.append(weights)
        return self.norm(x) if self.norm_first else x, hidden, attentions


class Hubert(nn.Module):
    """Audio at 16 kHz to hidden states every 20 ms. Padding changes nothing (but see `norm_over_padding`)."""

    def __init__(self, config: HubertConfig, for_training: bool = True) -> None:
        """`for_training` is what every kind of model takes; here it changes nothing."""
        super().__init__()
        self.config = config
        self.extractor = nn.ModuleList(ConvLayer(config, i) for i in range(config.num_convs))
        self.projection = FeatureProjection(config)
        self.positions = PositionalConvolution(config)
        self.encoder = Transformer(config)
        for module in (*self.encoder.modules(), self.projection.linear):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, waveforms: Tensor, lens: Tensor | None = None, keep_attention: bool = False) -> Representations:
        """
        Args:
          waveforms: (N, S) samples in [-1, 1]; where norms come first the published models want each utterance with
            mean 0 and variance 1.
          lens: (N,), valid samples of each; None for all.
          keep_attention: give the attention weights, too.

        Raises:
          UserError: an utterance is shorter than the window of one frame.
        """
        lens, mask, features = self.extract(waveforms, lens)
        return self.contextual(self.projection(features), lens, mask, keep_attention)

    def contextual(self, x: Tensor, lens: Tensor, mask: Tensor, keep_attention: bool = False) -> Representations:
        """What follows the projection: x (N, T, d_model), valid frames (N,), mask (N, T)."""
        x = x * mask[..., None]
        out, hidden, attentions = self.encoder(x + self.positions(x), mask)
        return Representations(out, lens, tuple(hidden), tuple(attentions) if keep_attention else ())

    def extract(self, waveforms: Tensor, lens: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Frames of the extractor: valid frames (N,), mask (N, T), frames (N, T, C)."""
        n, num_samples = waveforms.shape
        shortest = num_samples if lens is None else int(lens.min())
        if shortest < self.config.min_frames:
            raise UserError(
                f"audio of {shortest} samples is shorter than the window of one frame: give at least "
                f"{self.config.min_frames}"
            )
        padded = lens is not None and shortest < num_samples
        lens = waveforms.new_full((n,), num_samples).long() if lens is None else lens.to(waveforms.device)
        conv_lens = self.config.conv_lens(lens)
        masked = padded and self.config.conv_norm == GROUP and not self.config.norm_over_padding
        x = waveforms[:, None]  # (N, 1, S)
        for layer, valid in zip(self.extractor, conv_lens, strict=True):
            x = layer(x, valid if masked else None)
        return conv_lens[-1], valid_frames(conv_lens[-1], x.size(2)), x.transpose(1, 2)
