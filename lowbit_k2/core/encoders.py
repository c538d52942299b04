"""Encoders as settings: sizes, frames out for frames in, and the shape of every parameter, without torch.

`ENCODERS` names the kinds; `register_encoder` adds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.errors import UserError

Shapes = Iterator[tuple[str, tuple[int, ...]]]  # of parameters and float buffers, by name, lazily
E = TypeVar("E", bound="EncoderConfig")


class EncoderConfig(Config):
    """What every encoder's settings offer; a subclass is a frozen dataclass with these fields and more."""

    kind: ClassVar[str]
    build: ClassVar[str | Callable[..., Any]]  # settings -> torch module; "package.module:name" is imported when needed
    presets: ClassVar[dict[str, EncoderConfig]]  # named sizes
    num_features: int
    d_model: int  # width of the output
    num_layers: int

    def output_lens(self, lens: Any) -> Any:
        """Output frames for `lens` input frames: a number, or an integer array or tensor of them."""
        raise NotImplementedError

    def shapes(self) -> Shapes:
        """Name and shape of every parameter and float buffer, in the order of the module's state."""
        raise NotImplementedError

    @property
    def frames_per_output(self) -> int:
        """Input frames per output frame, in long utterances."""
        return round(10_000 / self.output_lens(10_000))

    @property
    def min_frames(self) -> int:
        """Input frames that give one output frame; fewer give none."""
        return next(t for t in range(1, 10_000) if self.output_lens(t) > 0)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **super().to_dict()}

    @classmethod
    def preset(cls: type[E], name: str, **overrides: Any) -> E:
        """A named size with single fields replaced.

        Raises:
          UserError: no such preset, or a wrong value.
        """
        if name not in cls.presets:
            raise UserError(f"unknown model preset '{name}': choose one of {', '.join(cls.presets)}")
        return replace(cls.presets[name], **overrides)


ENCODERS: dict[str, type[EncoderConfig]] = {}


def register_encoder(cls: type[E]) -> type[E]:
    """Make an encoder's settings known by their `kind`; also a decorator."""
    ENCODERS[cls.kind] = cls
    return cls


def encoder_from_dict(values: Mapping[str, Any]) -> EncoderConfig:
    """Inverse of `EncoderConfig.to_dict`.

    Raises:
      UserError: unknown kind, or unknown or wrong fields.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"the encoder's settings {values!r} are no object")
    fields = dict(values)
    kind = fields.pop("kind", "conformer")
    if not isinstance(kind, str) or kind not in ENCODERS:
        raise UserError(f"encoder kind {kind!r} is unknown, this version has {', '.join(ENCODERS)}")
    return ENCODERS[kind].from_dict(fields)


def whole_numbers(text: str) -> tuple[int, ...]:
    """`1,1,0,3` -> (1, 1, 0, 3); raises ValueError for anything else."""
    return tuple(int(part) for part in text.split(","))


def check_widths(name: str, widths: tuple[int, ...], num_layers: int, high: int) -> None:
    """One width for all layers, or one for each.

    Raises:
      ConfigError: another number of them, or one that is no whole number from 1 to `high`.
    """
    whole = isinstance(widths, tuple) and all(type(width) is int for width in widths)
    if not whole or len(widths) not in (1, num_layers) or not all(1 <= width <= high for width in widths):
        spelled = ",".join(map(str, widths)) if isinstance(widths, tuple) else repr(widths)
        raise ConfigError(name, f"{spelled}: give one, or {num_layers}, from 1 to {high}")


def of_each_layer(widths: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """One width stands for all layers."""
    return widths if len(widths) > 1 else widths * num_layers


@register_encoder
@dataclass(frozen=True)
class ConformerConfig(EncoderConfig):
    """A Conformer (arXiv 2005.08100) at a quarter of the input's frame rate.

    `ffn_dim` may be given as one number, as files of version 0.1 and before have it.
    """

    kind: ClassVar[str] = "conformer"
    build: ClassVar[str] = "lowbit_k2.models.conformer:ConformerEncoder"

    num_features: int = option(80, flag="", low=1, high=4096)
    d_model: int = option(256, "width", low=1, high=16384)
    num_layers: int = option(12, "blocks", low=1, high=1000)
    num_heads: int = option(4, "of attention", low=1, high=1024)
    ffn_dim: tuple[int, ...] = option(
        (2048,), "hidden units of both feed-forward modules of each block, or one for all", parse=whole_numbers
    )
    conv_kernel: int = option(31, "frames of 40 ms, odd", low=1, high=4095)
    subsampling_channels: int = option(256, "of the convolutions that come first", low=1, high=4096)
    dropout: float = option(0.1, "on the output of every module of a block", low=0, high=0.9)
    ffn_dropout: float = option(0.1, "on the hidden units of the feed-forward modules", low=0, high=0.9)
    attention_dropout: float = option(0.0, "on the attention weights", low=0, high=0.9)
    conv_norm: str = option("batch", "norm of the convolution module", choices=("batch", "layer"))

    def __post_init__(self) -> None:
        if type(self.ffn_dim) is int:
            object.__setattr__(self, "ffn_dim", (self.ffn_dim,))
        super().__post_init__()

    def check(self) -> None:
        check_widths("ffn_dim", self.ffn_dim, self.num_layers, 131072)
        if self.d_model % (2 * self.num_heads):
            raise ConfigError("d_model", f"{self.d_model} must be a multiple of 2 x num_heads {self.num_heads}")
        if self.conv_kernel % 2 == 0:
            raise ConfigError("conv_kernel", f"must be odd, it is {self.conv_kernel}")
        if self.output_lens(self.num_features) < 1:
            raise ConfigError("num_features", f"{self.num_features} is too small, need at least 7")

    @property
    def layer_ffn_dims(self) -> tuple[int, ...]:
        """Of each block."""
        return of_each_layer(self.ffn_dim, self.num_layers)

    def output_lens(self, lens: Any) -> Any:
        """Two convolutions of width 3 and stride 2 without padding."""
        return ((lens - 1) // 2 - 1) // 2

    def shapes(self) -> Shapes:
        d, channels = self.d_model, self.subsampling_channels
        yield from affine_shapes("subsampling.conv1", (channels, 1, 3, 3))
        yield from affine_shapes("subsampling.conv2", (channels, channels, 3, 3))
        yield from affine_shapes("subsampling.out", (d, channels * self.output_lens(self.num_features)))
        for i, ffn_dim in enumerate(self.layer_ffn_dims):
            for name, shape in self._layer_shapes(ffn_dim):
                yield f"layers.{i}.{name}", shape
        yield from affine_shapes("norm", (d,))

    def _layer_shapes(self, ffn_dim: int) -> Shapes:
        d, head = self.d_model, (self.num_heads, self.d_model // self.num_heads)
        for i in (1, 2):
            yield from affine_shapes(f"norm_ff{i}", (d,))
            yield from affine_shapes(f"ff{i}.w1", (ffn_dim, d))
            yield from affine_shapes(f"ff{i}.w2", (d, ffn_dim))
        yield from affine_shapes("norm_attention", (d,))
        yield "attention.pos_bias_u", head
        yield "attention.pos_bias_v", head
        for name in ("query", "key", "value", "out"):
            yield from affine_shapes(f"attention.{name}", (d, d))
        yield "attention.pos.weight", (d, d)
        yield from affine_shapes("norm_conv", (d,))
        yield from affine_shapes("conv.pointwise1", (2 * d, d))
        yield from affine_shapes("conv.depthwise", (d, 1, self.conv_kernel))
        yield from affine_shapes("conv.norm", (d,))
        if self.conv_norm == "batch":
            yield "conv.norm.running_mean", (d,)
            yield "conv.norm.running_var", (d,)
        yield from affine_shapes("conv.pointwise2", (d, d))
        yield from affine_shapes("norm_out", (d,))


def affine_shapes(name: str, weight: tuple[int, ...]) -> Shapes:
    """A weight and a bias of its first dimension."""
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


ConformerConfig.presets = {
    # about 1 M parameters: the embedded demo corpus on two CPU cores
    "demo": ConformerConfig(
        d_model=96, num_layers=4, ffn_dim=(384,), subsampling_channels=32, conv_kernel=15, ffn_dropout=0.0
    ),
    # about 2.1 M: AN4 on two CPU cores
    "tiny": ConformerConfig(
        d_model=144, num_layers=4, ffn_dim=(576,), subsampling_channels=32, conv_kernel=15, ffn_dropout=0.0
    ),
    # about 9 M, the size of Conformer-S
    "small": ConformerConfig(d_model=144, num_layers=16, ffn_dim=(576,), subsampling_channels=144),
    # about 29 M; 30 M as a transducer: the width of Conformer-M
    "medium": ConformerConfig(num_layers=17, ffn_dim=(1024,)),
    # 34.03 M with 2000 pieces: the encoder of arXiv 2505.21245 with a CTC head
    "paper": ConformerConfig(),
    # about 118 M, the size of Conformer-L
    "large": ConformerConfig(d_model=512, num_layers=17, num_heads=8, ffn_dim=(2048,), subsampling_channels=512),
}


@register_encoder
@dataclass(frozen=True)
class TdnnfConfig(EncoderConfig):
    """A factorised TDNN (Povey et al., "Semi-orthogonal low-rank matrix factorization for deep neural networks", 2018),
    as Kaldi's chain recipes have it, at a third of the input's frame rate.

    The first layer is a TDNN over three frames; layer i has `strides[i]` frames of the input between the two frames
    that its factor, and those that its second matrix, looks at. Strides are 0 or 1 as long as all frames are looked at;
    from the first one of 3 on, they are multiples of 3, and only every third frame is.
    """

    kind: ClassVar[str] = "tdnnf"
    build: ClassVar[str] = "lowbit_k2.models.tdnnf:TdnnfEncoder"

    num_features: int = option(80, flag="", low=1, high=4096)
    d_model: int = option(256, "width of the output", low=1, high=16384)
    num_layers: int = option(14, "factorised layers", low=1, high=1000)
    hidden_dim: int = option(1536, "width of TDNN-F layers", low=1, high=16384)
    bottlenecks: tuple[int, ...] = option((160,), "of each TDNN-F layer, or one for all", parse=whole_numbers)
    strides: tuple[int, ...] = option(
        (1, 1, 1, 0, 3),
        "frames that each TDNN-F layer reaches to both sides; the last for all that follow",
        parse=whole_numbers,
    )
    bypass: float = option(0.66, "factor on the input that is added to a TDNN-F layer's output", low=0, high=1)
    dropout: float = option(0.5, "the largest of a schedule, one mask for all frames", low=0, high=0.9)

    def check(self) -> None:
        # a factor's rows can be orthogonal only where it has as many columns
        check_widths("bottlenecks", self.bottlenecks, self.num_layers, self.hidden_dim)
        strides, first = self.layer_strides, self.first_slow_layer
        wrong = [s for s in strides[:first] if s not in (0, 1)] or [s for s in strides[first:] if s % 3 or s > 999]
        if wrong or len(self.strides) > self.num_layers or min(strides) < 0:
            raise ConfigError(
                "strides",
                f"{','.join(map(str, self.strides))}: give up to {self.num_layers}, 0 or 1 and then multiples of 3",
            )

    @property
    def layer_bottlenecks(self) -> tuple[int, ...]:
        """Of each factorised layer."""
        return of_each_layer(self.bottlenecks, self.num_layers)

    @property
    def layer_strides(self) -> tuple[int, ...]:
        """Of each factorised layer, in frames of the input."""
        return (*self.strides, *self.strides[-1:] * (self.num_layers - len(self.strides)))

    @property
    def first_slow_layer(self) -> int:
        """The first layer that looks at every third frame only; `num_layers` for none."""
        return next((i for i, stride in enumerate(self.layer_strides) if stride > 1), self.num_layers)

    @property
    def context(self) -> int:
        """Frames of the input that an output frame sees on each side of its own."""
        return 1 + sum(self.layer_strides)

    def output_lens(self, lens: Any) -> Any:
        """Every third frame, the first one included."""
        return (lens + 2) // 3

    def shapes(self) -> Shapes:
        d = self.hidden_dim
        yield from affine_shapes("input", (d, 3 * self.num_features))
        yield from _running("input_norm", d)
        for i, (bottleneck, stride) in enumerate(zip(self.layer_bottlenecks, self.layer_strides, strict=True)):
            reach = 2 if stride else 1
            yield f"layers.{i}.factor.weight", (bottleneck, reach * d)
            yield from affine_shapes(f"layers.{i}.affine", (d, reach * bottleneck))
            yield from _running(f"layers.{i}.norm", d)
        yield "prefinal.factor.weight", (self.d_model, d)
        yield from affine_shapes("prefinal.affine", (d, self.d_model))
        yield from _running("prefinal.norm", d)
        yield "prefinal.out.weight", (self.d_model, d)
        yield from _running("prefinal.out_norm", self.d_model)


def _running(name: str, size: int) -> Shapes:
    """Of a BatchNorm without a learned scale."""
    yield f"{name}.running_mean", (size,)
    yield f"{name}.running_var", (size,)


TdnnfConfig.presets = {
    # 14.9 M with a few units; Kaldi's chain recipe 7q, whose 18.6 M include thousands of senones and a second head
    "tdnnf-7q": TdnnfConfig(),
    # about 4 M: Kaldi's recipe for Mini LibriSpeech
    "tdnnf-small": TdnnfConfig(d_model=192, num_layers=12, hidden_dim=768, bottlenecks=(96,), dropout=0.0),
    # about 1.1 M: AN4 on two CPU cores
    "tdnnf-tiny": TdnnfConfig(
        d_model=128, num_layers=9, hidden_dim=384, bottlenecks=(64,), strides=(1, 1, 0, 3), dropout=0.0
    ),
}


@register_encoder
@dataclass(frozen=True)
class LstmConfig(EncoderConfig):
    """LSTM layers over frames that are joined by the handful in front, as on-device transducers have them (arXiv
    1811.06621); it streams where it has one direction.

    Each layer puts out `d_model` numbers a frame, of both directions together.
    """

    kind: ClassVar[str] = "lstm"
    build: ClassVar[str] = "lowbit_k2.models.lstm:LstmEncoder"

    num_features: int = option(80, flag="", low=1, high=4096)
    d_model: int = option(1024, "width of the output", low=1, high=16384)
    num_layers: int = option(5, "LSTM layers", low=1, high=1000)
    cell_dim: int = option(
        0, "cells of an LSTM layer in each direction, projected to its width; 0: no projection", low=0, high=16384
    )
    stack_frames: int = option(3, "input frames that an LSTM encoder joins into one", low=1, high=64)
    reduce_after: int = option(0, "LSTM layer behind which two frames are joined into one; 0: none", low=0)
    bidirectional: bool = option(False, "LSTM layers in both directions, which cannot stream")
    layer_norm: bool = option(True, "LayerNorm on the output of each LSTM layer")
    dropout: float = option(0.1, "between layers", low=0, high=0.9)

    def check(self) -> None:
        if self.bidirectional and self.d_model % 2:
            raise ConfigError("d_model", f"{self.d_model} must be even, for two directions")
        if self.cell_dim and self.cell_dim <= self.direction_dim:
            raise ConfigError("cell_dim", f"{self.cell_dim} must be more than the {self.direction_dim} projected to")
        if self.reduce_after >= self.num_layers:
            raise ConfigError("reduce_after", f"{self.reduce_after} must be less than num_layers {self.num_layers}")

    @property
    def direction_dim(self) -> int:
        """Width of what a layer puts out in one direction."""
        return self.d_model // 2 if self.bidirectional else self.d_model

    @property
    def layer_inputs(self) -> tuple[int, ...]:
        """Width of the input of each layer."""
        joined = [2 if self.reduce_after and i == self.reduce_after else 1 for i in range(1, self.num_layers)]
        return (self.stack_frames * self.num_features, *(times * self.d_model for times in joined))

    def output_lens(self, lens: Any) -> Any:
        """Frames that do not fill a group of those joined are left out."""
        return lens // (self.stack_frames * (2 if self.reduce_after else 1))

    def shapes(self) -> Shapes:
        yield from _running("input_norm", self.num_features)
        for i, inputs in enumerate(self.layer_inputs):
            for name, shape in lstm_shapes(inputs, self.direction_dim, self.cell_dim, self.bidirectional):
                yield f"layers.{i}.lstm.{name}", shape
            if self.layer_norm:
                yield from affine_shapes(f"layers.{i}.norm", (self.d_model,))


def lstm_shapes(inputs: int, outputs: int, cells: int = 0, bidirectional: bool = False, num_layers: int = 1) -> Shapes:
    """Of `nn.LSTM`, whose `outputs` (of each direction) are projected from `cells` unless these are 0."""
    gates, directions = 4 * (cells or outputs), ("", "_reverse") if bidirectional else ("",)
    for i in range(num_layers):
        for end in (f"l{i}{direction}" for direction in directions):
            yield f"weight_ih_{end}", (gates, inputs if i == 0 else len(directions) * outputs)
            yield f"weight_hh_{end}", (gates, outputs)
            yield f"bias_ih_{end}", (gates,)
            yield f"bias_hh_{end}", (gates,)
            if cells:
                yield f"weight_hr_{end}", (outputs, cells)


LstmConfig.presets = {
    # 38.9 M; with its prediction network 2 x 1024 and 2500 pieces the transducer of arXiv 2210.09188
    "lstm-rnnt": LstmConfig(),
    # about 10 M
    "lstm-small": LstmConfig(d_model=512),
    # about 1.6 M, 1.9 M as a transducer: AN4 on two CPU cores
    "lstm-tiny": LstmConfig(d_model=256, num_layers=3, stack_frames=4),
}
