"""HuBERT and wav2vec 2.0 as settings: sizes, frames out for samples in, the shape of every parameter; no torch.

A convolutional extractor makes frames of 20 ms out of audio at 16 kHz, a Transformer goes over these. Both papers
(arXiv 2006.11477, 2106.07447) have the same network; they differ in how it is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from lowbit_k2.core.config import ConfigError, option
from lowbit_k2.core.encoders import Shapes, affine_shapes, check_widths, of_each_layer
from lowbit_k2.core.models import ModelConfig, register_model
from lowbit_k2.errors import UserError

H = TypeVar("H", bound="HubertConfig")
GROUP, LAYER = "group", "layer"  # norms of the extractor
SAMPLING_RATE = 16000  # Hz, of the audio that all such models read


@register_model
@dataclass(frozen=True)
class HubertConfig(ModelConfig):
    """Audio to hidden states.

    The extractor's layers are `conv_dims`, one width for all or one each, with kernels and strides in samples of their
    input. Norm `group` is one GroupNorm behind the first of them, with one group per channel (the base models); `layer`
    is a LayerNorm behind each (the large ones). `norm_first` puts the Transformer's LayerNorms in front of what they
    belong to and one behind the last layer (large); else they stand behind (base).
    """

    kind: ClassVar[str] = "hubert"
    build: ClassVar[str] = "lowbit_k2.models.hubert:Hubert"
    # what stands in front of the Transformer has the role that it has in the other encoders
    rules: ClassVar[tuple[tuple[str, str], ...]] = (
        ("extractor.*.conv.weight", "subsampling"),
        ("projection.linear.weight", "subsampling"),
        ("positions.conv.weight", "subsampling"),
    )
    sizes: ClassVar[dict[str, HubertConfig]]
    vocab_size: ClassVar[int] = 0  # it puts out no units
    num_features: ClassVar[int] = 0  # it reads samples

    conv_dims: tuple[int, ...] = option((512,), flag="")
    conv_kernels: tuple[int, ...] = option((10, 3, 3, 3, 3, 2, 2), flag="")
    conv_strides: tuple[int, ...] = option((5, 2, 2, 2, 2, 2, 2), flag="")
    conv_norm: str = option(GROUP, flag="", choices=(GROUP, LAYER))
    conv_bias: bool = option(False, flag="")
    projection_norm: bool = option(True, flag="")  # a LayerNorm on the extractor's frames; DistilHuBERT has none
    d_model: int = option(768, flag="", low=1, high=16384)
    num_layers: int = option(12, flag="", low=1, high=1000)
    num_heads: int = option(12, flag="", low=1, high=1024)
    ffn_dim: int = option(3072, flag="", low=1, high=131072)
    norm_first: bool = option(False, flag="")
    positions_kernel: int = option(128, flag="", low=1, high=4096)  # frames that the positional convolution spans
    positions_groups: int = option(16, flag="", low=1, high=4096)
    dropout: float = option(0.1, flag="", low=0, high=0.9)  # behind projection, attention and feed-forward
    ffn_dropout: float = option(0.0, flag="", low=0, high=0.9)  # on the hidden units of the feed-forward modules
    attention_dropout: float = option(0.1, flag="", low=0, high=0.9)  # on the attention weights
    # The published models' GroupNorm looks at what pads a batch, too, so that an utterance moves with its neighbours.
    norm_over_padding: bool = option(False, flag="")

    def check(self) -> None:
        for name in ("conv_kernels", "conv_strides"):
            check_widths(name, getattr(self, name), self.num_convs, 4096)
        if len(self.conv_kernels) != len(self.conv_strides):
            raise ConfigError("conv_strides", f"{self.conv_strides}: give one for each of the {self.num_convs} kernels")
        check_widths("conv_dims", self.conv_dims, self.num_convs, 16384)
        if self.d_model % self.num_heads:
            raise ConfigError("d_model", f"{self.d_model} must be a multiple of num_heads {self.num_heads}")
        if self.d_model % self.positions_groups:
            raise ConfigError(
                "d_model", f"{self.d_model} must be a multiple of positions_groups {self.positions_groups}"
            )

    @property
    def num_convs(self) -> int:
        """Layers of the extractor."""
        return len(self.conv_kernels)

    @property
    def layer_conv_dims(self) -> tuple[int, ...]:
        """Channels of each layer of the extractor."""
        return of_each_layer(self.conv_dims, self.num_convs)

    @property
    def samples_per_frame(self) -> int:
        return math.prod(self.conv_strides)

    @property
    def networks(self) -> tuple[str, ...]:
        """No search reads hidden states."""
        return ()

    @property
    def compared_on(self) -> tuple[int, ...]:
        return self.samples_per_frame, self.num_layers, self.d_model, self.num_heads

    @property
    def backbone(self) -> HubertConfig:
        """The settings of the network that gives hidden states, without what is behind it."""
        return HubertConfig(**{field.name: getattr(self, field.name) for field in fields(HubertConfig)})

    def vocabulary_tensors(self) -> set[str]:
        return set()

    def conv_lens(self, lens: Any) -> list[Any]:
        """Frames behind each layer of the extractor for `lens` samples, never negative."""
        found = []
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            lens = (lens - kernel) // stride + 1
            lens = lens * (lens > 0)
            found.append(lens)
        return found

    def output_lens(self, lens: Any) -> Any:
        """Frames of 20 ms for samples: convolutions without padding."""
        return self.conv_lens(lens)[-1]

    def shapes(self, for_training: bool = True) -> Shapes:
        d, before = self.d_model, 1
        for i, (dim, kernel) in enumerate(zip(self.layer_conv_dims, self.conv_kernels, strict=True)):
            yield f"extractor.{i}.conv.weight", (dim, before, kernel)
            if self.conv_bias:
                yield f"extractor.{i}.conv.bias", (dim,)
            if self.conv_norm == LAYER or i == 0:
                yield from affine_shapes(f"extractor.{i}.norm", (dim,))
            before = dim
        if self.projection_norm:
            yield from affine_shapes("projection.norm", (before,))
        yield from affine_shapes("projection.linear", (d, before))
        yield from affine_shapes("positions.conv", (d, d // self.positions_groups, self.positions_kernel))
        for i in range(self.num_layers):
            for name in ("query", "key", "value", "out"):
                yield from affine_shapes(f"encoder.layers.{i}.attention.{name}", (d, d))
            yield from affine_shapes(f"encoder.layers.{i}.norm_attention", (d,))
            yield from affine_shapes(f"encoder.layers.{i}.ff.w1", (self.ffn_dim, d))
            yield from affine_shapes(f"encoder.layers.{i}.ff.w2", (d, self.ffn_dim))
            yield from affine_shapes(f"encoder.layers.{i}.norm_ff", (d,))
        yield from affine_shapes("encoder.norm", (d,))

    @classmethod
    def preset(cls: type[H], name: str, vocab_size: int = 0, num_features: int = 0, **overrides: Any) -> H:
        """A named size with single fields replaced.

        Args:
          vocab_size: classes of a kind that has such.
          num_features: 0, for samples have none.

        Raises:
          UserError: no such size, or a wrong value.
        """
        if name not in cls.sizes:
            raise UserError(f"HuBERT has no size {name!r}: choose one of {', '.join(cls.sizes)}")
        if "vocab_size" in {field.name for field in fields(cls)}:
            overrides = {"vocab_size": vocab_size, **overrides}
        return cls(**{**vars(cls.sizes[name]), **overrides})


@register_model
@dataclass(frozen=True)
class MaskedHubertConfig(HubertConfig):
    """The same with what pre-training has besides: classes of frames, told from audio of which spans are hidden."""

    kind: ClassVar[str] = "hubert-masked"
    build: ClassVar[str] = "lowbit_k2.models.masked_hubert:MaskedHubert"

    vocab_size: int = option(100, flag="", low=2, high=32767)  # classes, of which labels hold int16
    code_dim: int = option(256, flag="", low=1, high=4096)  # in which outputs and classes are compared

    vocabulary_tensors = ModelConfig.vocabulary_tensors

    def shapes(self, for_training: bool = True) -> Shapes:
        yield from super().shapes()
        if for_training:
            yield "head.mask", (self.d_model,)
            yield from affine_shapes("head.projection", (self.code_dim, self.d_model))
            yield "head.codewords.weight", (self.vocab_size, self.code_dim)


# A cheaper extractor for the "FastConv" of arXiv 2301.00652, which does not give its layers: channels that grow as the
# frame rate falls. 2.02 M parameters, where the sizes in that paper's tables leave room for 2.04 M; the standard one
# has 4.20 M.
_FAST_CONV = {"conv_dims": (64, 128, 256, 256, 512, 512, 512), "conv_kernels": (10, 3, 3, 3, 3, 2, 3)}

HubertConfig.sizes = {
    # 94.4 M; the 94.7 M often quoted count the head of pre-training
    "base": HubertConfig(),
    # 92.2 M
    "base-fast": HubertConfig(**_FAST_CONV),
    # 315.4 M
    "large": HubertConfig(
        conv_norm=LAYER, d_model=1024, num_layers=24, num_heads=16, ffn_dim=4096, norm_first=True, attention_dropout=0.0
    ),
    # 2.8 M: two CPU cores
    "tiny": HubertConfig(
        conv_dims=(32, 64, 128, 128, 192, 192, 192),
        d_model=192,
        num_layers=5,
        num_heads=4,
        ffn_dim=768,
        positions_kernel=64,
    ),
}
