"""Model kinds: settings, shapes, lengths and the searches that a kind answers to, without torch.

A kind is registered once and is then known everywhere: `train.py --objective`, checkpoints, packed files, decode.py,
`lowbit-k2 transcribe`. `MODEL_KINDS` holds them; `register_model` adds one, from the package or from a user's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.encoders import ENCODERS, ConformerConfig, EncoderConfig, Shapes, encoder_from_dict, lstm_shapes
from lowbit_k2.core.topology import CTC as CTC_TOPOLOGY
from lowbit_k2.core.topology import TOPOLOGIES, num_classes
from lowbit_k2.errors import UserError

M = TypeVar("M", bound="ModelConfig")
# what a network puts out, by the searches that read it; no search reads the next unit of a language model
CTC, TRANSDUCER, NEXT_UNIT = "ctc", "transducer", "next-unit"


class ModelConfig(Config):
    """What every model's settings offer; a subclass is a frozen dataclass.

    kind: its name in files.
    build: (settings, for_training) -> torch module, or "package.module:name" of that, imported when it is needed.
    rules: (pattern, role) pairs of the quantization that come before the built-in ones.
    layer_prefix: layer i is the module f"{layer_prefix}.{i}".
    vocab_size: units of the network, blank included.
    topology: which classes of its frame posteriors a unit has (core/topology.py).
    num_features: of an input frame; 0: the model reads units, or samples.
    num_layers: of those that `layer_prefix` numbers.
    d_model: width, which Noam's schedule divides by.
    """

    kind: ClassVar[str]
    build: ClassVar[str | Callable[..., Any]]
    rules: ClassVar[tuple[tuple[str, str], ...]] = ()
    layer_prefix: ClassVar[str] = "encoder.layers"
    topology: str = CTC_TOPOLOGY
    vocab_size: int
    num_features: int
    num_layers: int
    d_model: int

    def output_lens(self, lens: Any) -> Any:
        """Output frames for `lens` input frames: a number, or an integer array or tensor of them."""
        raise NotImplementedError

    def shapes(self, for_training: bool = True) -> Shapes:
        """Name and shape of every parameter and float buffer of the plain model."""
        raise NotImplementedError

    @property
    def min_frames(self) -> int:
        """Input frames that give one output frame."""
        return next(t for t in range(1, 10_000) if self.output_lens(t) > 0)

    @property
    def compared_on(self) -> tuple[int, ...]:
        """Sizes that a model must share with a teacher which it is compared with on hidden states."""
        return ()

    def vocabulary_tensors(self) -> set[str]:
        """Names of the tensors whose shape follows the vocabulary: heads and embeddings."""
        own, other = self.shapes(), replace(self, vocab_size=self.vocab_size + 1).shapes()
        return {name for (name, shape), (_, changed) in zip(own, other, strict=True) if shape != changed}

    @property
    def networks(self) -> tuple[str, ...]:
        """The kinds of search that can read its output, the usual one first."""
        return (CTC,)

    @classmethod
    def preset(cls: type[M], name: str, **overrides: Any) -> M:
        """A named size with single fields replaced."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **super().to_dict()}


MODEL_KINDS: dict[str, type[ModelConfig]] = {}


def register_model(cls: type[M]) -> type[M]:
    """Make a model's settings known by their `kind`; also a decorator."""
    MODEL_KINDS[cls.kind] = cls
    return cls


def model_config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The settings that `to_dict` described, of this version or of one before.

    Raises:
      UserError: unknown kind, or unknown, missing or wrong fields.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"the model's settings {values!r} are no object")
    fields_ = _of_this_version(dict(values))
    kind = fields_.pop("kind", CTC)
    if not isinstance(kind, str) or kind not in MODEL_KINDS:
        known = ", ".join(MODEL_KINDS)
        raise UserError(f"model kind {kind!r} is unknown, this version has {known}: load the file that registers it")
    return MODEL_KINDS[kind].from_dict(fields_)


def _of_this_version(values: dict[str, Any]) -> dict[str, Any]:
    """Until version 0.1 a CTC model had no `kind` and no `encoder`, and the encoder carried the vocabulary."""
    if "kind" not in values and "encoder" not in values:
        return {"kind": CTC, "vocab_size": values.pop("vocab_size", 500), "encoder": values}
    encoder = values.get("encoder")
    if isinstance(encoder, Mapping) and "vocab_size" in encoder:
        inner = dict(encoder)
        return {**values, "vocab_size": inner.pop("vocab_size"), "encoder": inner}
    return values


@dataclass(frozen=True)
class EncoderModelConfig(ModelConfig):
    """Settings of a model that is an encoder and something behind it."""

    encoder: EncoderConfig = option(ConformerConfig, flag="")
    vocab_size: int = option(500, flag="", low=2, high=1048576)

    num_layers = property(lambda self: self.encoder.num_layers)
    num_features = property(lambda self: self.encoder.num_features)
    d_model = property(lambda self: self.encoder.d_model)

    def output_lens(self, lens: Any) -> Any:
        return self.encoder.output_lens(lens)

    @classmethod
    def from_dict(cls: type[M], values: Mapping[str, Any]) -> M:
        encoder = encoder_from_dict(values.get("encoder", {}))
        return super().from_dict({**values, "encoder": encoder})

    @classmethod
    def preset(cls: type[M], name: str, encoder: str = "", **overrides: Any) -> M:
        """A named size of the encoder with what suits it behind; fields of either replaced.

        Args:
          name: one of the encoder's `presets`.
          encoder: its kind; by default the first one that has such a preset.
        Raises:
          UserError: no such encoder or preset, or a wrong value.
        """
        own = {field.name for field in fields(cls)}
        of_model = {key: value for key, value in overrides.items() if key in own}
        of_encoder = {key: value for key, value in overrides.items() if key not in own}
        having = (kind for kind, own in ENCODERS.items() if name in getattr(own, "presets", ()))
        encoder = encoder or next(having, "conformer")
        if encoder not in ENCODERS:
            raise UserError(f"encoder kind {encoder!r} is unknown: choose one of {', '.join(ENCODERS)}")
        try:
            sized = ENCODERS[encoder].preset(name, **of_encoder)
        except TypeError:
            raise UserError(f"{', '.join(of_encoder)}: not all of these are settings of a {encoder}") from None
        return replace(cls(encoder=sized, **cls.sizes_beside(name)), **of_model)

    @classmethod
    def sizes_beside(cls, name: str) -> dict[str, Any]:
        """Settings of what is behind the encoder of preset `name`."""
        return {}


@register_model
@dataclass(frozen=True)
class CtcConfig(EncoderModelConfig):
    """An encoder and one linear layer over the classes of the units, frame by frame."""

    kind: ClassVar[str] = CTC
    build: ClassVar[str] = "lowbit_k2.models.ctc:CtcModel"

    topology: str = option(CTC_TOPOLOGY, flag="", choices=TOPOLOGIES)  # which classes a unit has
    xent_head: bool = option(False, flag="")  # a second layer, trained by cross-entropy; for training alone

    @property
    def num_classes(self) -> int:
        """Outputs of the network."""
        return num_classes(self.topology, self.vocab_size)

    def shapes(self, for_training: bool = True) -> Shapes:
        yield from ((f"encoder.{name}", shape) for name, shape in self.encoder.shapes())
        for head in ("ctc_head", "xent_head") if self.xent_head and for_training else ("ctc_head",):
            yield f"{head}.weight", (self.num_classes, self.d_model)
            yield f"{head}.bias", (self.num_classes,)


# decoder and joiner; 512 beside the larger encoders
TRANSDUCER_DIMS = {"demo": 96, "tiny": 144, "small": 256}
STATELESS, LSTM = "stateless", "lstm"  # prediction networks
LSTM_TRANSDUCERS = {
    "lstm-rnnt": {"decoder_kind": LSTM, "decoder_layers": 2, "decoder_dim": 1024, "joiner_dim": 512},
    "lstm-small": {"decoder_kind": LSTM, "decoder_layers": 1, "decoder_dim": 512, "joiner_dim": 512},
    "lstm-tiny": {"decoder_kind": LSTM, "decoder_layers": 1, "decoder_dim": 128, "joiner_dim": 128},
}


@register_model
@dataclass(frozen=True)
class TransducerConfig(EncoderModelConfig):
    """An encoder, a prediction network and a joiner."""

    kind: ClassVar[str] = TRANSDUCER
    build: ClassVar[str] = "lowbit_k2.models.transducer:Transducer"

    decoder_dim: int = option(512, "width of the prediction network", low=1, high=16384)
    joiner_dim: int = option(512, "width of the joiner", low=1, high=16384)
    context_size: int = option(2, "tokens that a stateless prediction network sees", low=1, high=64)
    ctc_head: bool = option(False, flag="")  # a CTC head on the encoder beside the joiner
    decoder_kind: str = option(
        STATELESS, "prediction network: stateless sees the last tokens, lstm all", choices=(STATELESS, LSTM)
    )
    decoder_layers: int = option(1, "of an LSTM prediction network", low=1, high=100)

    def check(self) -> None:
        if self.decoder_kind == STATELESS and self.decoder_dim % 4:
            raise ConfigError("decoder_dim", f"{self.decoder_dim} must be a multiple of 4")

    @property
    def networks(self) -> tuple[str, ...]:
        return (TRANSDUCER, CTC) if self.ctc_head else (TRANSDUCER,)

    @classmethod
    def sizes_beside(cls, name: str) -> dict[str, Any]:
        return LSTM_TRANSDUCERS.get(name) or dict.fromkeys(
            ("decoder_dim", "joiner_dim"), TRANSDUCER_DIMS.get(name, 512)
        )

    def shapes(self, for_training: bool = True) -> Shapes:
        vocab, d, decoder, joiner = self.vocab_size, self.d_model, self.decoder_dim, self.joiner_dim
        yield from ((f"encoder.{name}", shape) for name, shape in self.encoder.shapes())
        yield "decoder.embedding.weight", (vocab, decoder)
        if self.decoder_kind == LSTM:
            of_lstm = lstm_shapes(decoder, decoder, num_layers=self.decoder_layers)
            yield from ((f"decoder.lstm.{name}", shape) for name, shape in of_lstm)
        elif self.context_size > 1:
            yield "decoder.conv.weight", (decoder, 4, self.context_size)
        linears = {"joiner.encoder_proj": (joiner, d), "joiner.decoder_proj": (joiner, decoder)}
        linears |= {"joiner.output": (vocab, joiner)}
        linears |= {"simple.am": (vocab, d), "simple.lm": (vocab, decoder)} if for_training else {}
        linears |= {"ctc_head": (vocab, d)} if self.ctc_head else {}
        for name, shape in linears.items():
            yield f"{name}.weight", shape
            yield f"{name}.bias", shape[:1]


def check_shapes(config: ModelConfig, found: Mapping[str, tuple[int, ...]], for_training: bool = True) -> None:
    """Every tensor that the settings promise is there with its shape, and no other: before anything is built.

    Args:
      found: shapes by plain parameter name, of a file.
      for_training: whether the file holds what only training needs.

    Raises:
      UserError: the first tensor that is missing, has another shape, or belongs to none.
    """
    known = set()
    for name, shape in config.shapes(for_training):
        has = tuple(found[name]) if name in found else None
        if has != tuple(shape):
            raise UserError(f"its configuration wants {name} as {shape}, the file has {has}: make it again")
        known.add(name)
    foreign = [name for name in found if name not in known]
    if foreign:
        raise UserError(f"it holds {foreign[0]}, which its configuration does not know: make the file again")
