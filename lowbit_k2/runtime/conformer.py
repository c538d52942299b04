"""The Conformer of models/conformer.py on packed weights, one utterance at a time."""

from __future__ import annotations

import math

import numpy as np

from lowbit_k2.core.encoders import ConformerConfig
from lowbit_k2.runtime.layers import glu, relative_attention, swish
from lowbit_k2.runtime.matrix import feed_forward
from lowbit_k2.runtime.subsampling import Subsampling
from lowbit_k2.runtime.weights import Weights

KEPT_FRAMES = 1024  # at most, of positions that are kept


def relative_positions(num_frames: int, d_model: int) -> np.ndarray:
    """Sinusoids for the distances num_frames-1 .. -(num_frames-1): (2 * num_frames - 1, d_model), float32.

    Angles are rounded to float32 where models/attention.py rounds them; the rest is as exact as float32 can be.
    """
    distance = np.arange(num_frames - 1, -num_frames, -1, dtype=np.float32)
    exponent = np.arange(0, d_model, 2, dtype=np.float32) * np.float32(-math.log(10000.0) / d_model)
    rate = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = (distance[:, None] * rate).astype(np.float64)  # (2T-1, d_model / 2)
    both = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return both.astype(np.float32).reshape(len(distance), d_model)  # (2T-1, d_model)


class FeedForward:
    """linear, swish, linear."""

    def __init__(self, weights: Weights, name: str) -> None:
        self.w1, self.w2, self.how = weights.linear(f"{name}.w1"), weights.linear(f"{name}.w2"), weights.how

    def __call__(self, x: np.ndarray) -> np.ndarray:
        matrices, biases = (self.w1.matrix, self.w2.matrix), (self.w1.bias, self.w2.bias)
        return feed_forward(*matrices, x, "swish", biases, self.how.mode, self.how.threads)


class SelfAttention:
    """With relative positions."""

    def __init__(self, weights: Weights, name: str) -> None:
        self.query, self.key, self.value, self.out, self.pos = (
            weights.linear(f"{name}.{part}") for part in ("query", "key", "value", "out", "pos")
        )
        self.u, self.v = (weights.floats(f"{name}.pos_bias_{part}") for part in "uv")
        self.how = weights.how

    def __call__(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        arrays = self.query(x), self.key(x), self.value(x), self.pos(positions)
        return self.out(relative_attention(*arrays, self.u, self.v, self.how.threads, self.how.mode))


class Convolution:
    """pointwise, GLU, depthwise, norm, swish, pointwise."""

    def __init__(self, weights: Weights, name: str, norm: str) -> None:
        self.pointwise1, self.pointwise2 = weights.linear(f"{name}.pointwise1"), weights.linear(f"{name}.pointwise2")
        self.depthwise, self.threads = weights.depthwise(f"{name}.depthwise"), weights.how.threads
        self.norm = None
        if norm == "batch":
            parts = ("weight", "bias", "running_mean", "running_var")
            self.depthwise.fold(*(weights.floats(f"{name}.norm.{part}") for part in parts))
        else:
            self.norm = weights.layer_norm(f"{name}.norm")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = self.depthwise(glu(self.pointwise1(x), self.threads), then_swish=self.norm is None)
        if self.norm is not None:
            x = self.norm(x)
            swish(x, self.threads, out=x)
        return self.pointwise2(x)


class Layer:
    """Half feed-forward, self-attention, convolution, half feed-forward, each pre-normed with a residual."""

    def __init__(self, weights: Weights, name: str, norm: str) -> None:
        self.norm_ff1, self.norm_attention, self.norm_conv, self.norm_ff2, self.norm_out = (
            weights.layer_norm(f"{name}.norm_{part}") for part in ("ff1", "attention", "conv", "ff2", "out")
        )
        self.ff1, self.ff2 = FeedForward(weights, f"{name}.ff1"), FeedForward(weights, f"{name}.ff2")
        self.attention = SelfAttention(weights, f"{name}.attention")
        self.conv = Convolution(weights, f"{name}.conv", norm)

    def __call__(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """x (T, C), which is changed; positions (2T-1, C) -> (T, C)."""
        y = self.norm_attention.after(x, self.ff1(self.norm_ff1(x)), 0.5)
        y = self.norm_conv.after(x, self.attention(y, positions))
        y = self.norm_ff2.after(x, self.conv(y))
        return self.norm_out.after(x, self.ff2(y), 0.5)


class ConformerEncoder:
    """Features (T, F) to encoder frames (T', C) at a quarter of the rate."""

    def __init__(self, config: ConformerConfig, weights: Weights, name: str = "encoder") -> None:
        self.config = config
        self.subsampling = Subsampling(config, weights, f"{name}.subsampling")
        self.layers = [Layer(weights, f"{name}.layers.{i}", config.conv_norm) for i in range(config.num_layers)]
        self.norm = weights.layer_norm(f"{name}.norm")
        self._positions = relative_positions(1, config.d_model)  # of the longest utterance so far

    def positions(self, num_frames: int) -> np.ndarray:
        """`relative_positions`: a part of those of a longer utterance."""
        kept = self._positions
        if len(kept) < 2 * num_frames - 1:
            kept = relative_positions(num_frames, self.config.d_model)
            if num_frames <= KEPT_FRAMES:
                self._positions = kept
        middle = len(kept) // 2
        return kept[middle - num_frames + 1 : middle + num_frames]  # (2T-1, C)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """features (T, F) with T >= config.min_frames."""
        x = self.subsampling(features) * np.float32(self.config.d_model**0.5)
        positions = self.positions(len(x))
        for layer in self.layers:
            x = layer(x, positions)
        return self.norm(x)
