"""Language models: settings, shapes and named sizes, without torch.

A model says how likely each unit is behind those before it; a sentence begins and ends with one and the same unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from lowbit_k2.core.config import ConfigError, option
from lowbit_k2.core.encoders import Shapes, lstm_shapes
from lowbit_k2.core.models import MODEL_KINDS, NEXT_UNIT, ModelConfig, register_model
from lowbit_k2.errors import UserError

L = TypeVar("L", bound="LanguageModelConfig")


class LanguageModelConfig(ModelConfig):
    """What every language model's settings offer; a subclass is a frozen dataclass."""

    presets: ClassVar[Mapping[str, LanguageModelConfig]]
    layer_prefix: ClassVar[str] = "layers"
    rules: ClassVar[tuple[tuple[str, str], ...]] = (
        ("layers.*.feed_forward.*.weight", "feed_forward"),
        ("layers.*.lstm.weight_*", "lstm"),
        ("output.weight", "output"),
    )
    num_features = 0
    tie_embeddings: bool

    @property
    def networks(self) -> tuple[str, ...]:
        return (NEXT_UNIT,)

    def output_lens(self, lens: Any) -> Any:
        """A distribution for each unit that is read."""
        return lens

    @classmethod
    def preset(cls: type[L], name: str, num_features: int = 0, **overrides: Any) -> L:
        """A named size of any kind of language model, single fields replaced.

        Args:
          num_features: 0, for units have none.

        Raises:
          UserError: no such preset, a setting of another kind, or a wrong value.
        """
        known = {name: config for kind in language_models() for name, config in kind.presets.items()}
        if name not in known:
            raise UserError(f"unknown size '{name}' of a language model: choose one of {', '.join(known)}")
        try:
            return replace(known[name], **overrides)
        except TypeError:
            raise UserError(f"{', '.join(overrides)}: not all of these are settings of a {known[name].kind}") from None

    def ends(self) -> Shapes:
        """Shapes of what stands before and behind the layers."""
        yield "embedding.weight", (self.vocab_size, self.d_model)
        if not self.tie_embeddings:
            yield "output.weight", (self.vocab_size, self.d_model)
        yield "output.bias", (self.vocab_size,)


def language_models() -> list[type[LanguageModelConfig]]:
    """All kinds, those of users' files included."""
    return [kind for kind in MODEL_KINDS.values() if issubclass(kind, LanguageModelConfig)]


@register_model
@dataclass(frozen=True)
class TransformerLmConfig(LanguageModelConfig):
    """A Transformer with LayerNorm in front of each module (arXiv 2002.04745), GELU, and sinusoids for positions."""

    kind: ClassVar[str] = "transformer-lm"
    build: ClassVar[str] = "lowbit_k2.models.transformer_lm:TransformerLm"

    vocab_size: int = option(10_000, flag="", low=4, high=1048576)
    d_model: int = option(512, "width", low=2, high=16384)
    num_layers: int = option(6, "layers", low=1, high=1000)
    num_heads: int = option(8, "attention heads of a Transformer", low=1, high=1024)
    ffn_dim: int = option(2048, "width within the feed-forward modules of a Transformer", low=1, high=65536)
    dropout: float = option(0.1, "on embeddings and behind each module", low=0, high=0.9)
    tie_embeddings: bool = option(True, "one matrix for the embedding and the output")

    def check(self) -> None:
        if self.d_model % self.num_heads or self.d_model % 2:
            raise ConfigError("d_model", f"{self.d_model} must be even and a multiple of num_heads {self.num_heads}")

    def shapes(self, for_training: bool = True) -> Shapes:
        d, inner = self.d_model, self.ffn_dim
        yield from self.ends()
        for i in range(self.num_layers):
            linears = {f"attention.{name}": (d, d) for name in ("query", "key", "value", "out")}
            linears |= {"feed_forward.inner": (inner, d), "feed_forward.outer": (d, inner)}
            for name in ("norm_attention", "norm_feed_forward"):
                yield f"layers.{i}.{name}.weight", (d,)
                yield f"layers.{i}.{name}.bias", (d,)
            for name, shape in linears.items():
                yield f"layers.{i}.{name}.weight", shape
                yield f"layers.{i}.{name}.bias", shape[:1]
        yield "norm.weight", (d,)
        yield "norm.bias", (d,)


@register_model
@dataclass(frozen=True)
class LstmLmConfig(LanguageModelConfig):
    """Layers of LSTM with LayerNorm."""

    kind: ClassVar[str] = "lstm-lm"
    build: ClassVar[str] = "lowbit_k2.models.lstm_lm:LstmLm"

    vocab_size: int = option(10_000, flag="", low=4, high=1048576)
    d_model: int = option(1024, "width", low=2, high=16384)
    num_layers: int = option(2, "layers", low=1, high=1000)
    dropout: float = option(0.1, "on embeddings and behind each layer", low=0, high=0.9)
    tie_embeddings: bool = option(True, "one matrix for the embedding and the output")

    def shapes(self, for_training: bool = True) -> Shapes:
        d = self.d_model
        yield from self.ends()
        for i in range(self.num_layers):
            yield from ((f"layers.{i}.lstm.{name}", shape) for name, shape in lstm_shapes(d, d))
            yield f"layers.{i}.norm.weight", (d,)
            yield f"layers.{i}.norm.bias", (d,)


TransformerLmConfig.presets = {  # weights without the embedding
    "paper": TransformerLmConfig(),  # 18.9 M: arXiv 2112.11438, 2201.03943
    "small": TransformerLmConfig(d_model=256, num_layers=4, num_heads=4, ffn_dim=1024),  # 3.2 M
    "tiny": TransformerLmConfig(d_model=128, num_layers=2, num_heads=4, ffn_dim=512),  # 0.4 M
}
LstmLmConfig.presets = {
    "lstm-paper": LstmLmConfig(),  # 16.8 M
    "lstm-small": LstmLmConfig(d_model=448),  # 3.2 M
    "lstm-tiny": LstmLmConfig(d_model=128, num_layers=1),  # 0.1 M
}
