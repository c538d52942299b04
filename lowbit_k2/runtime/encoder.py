"""A packed recogniser's network from features to what searches read, without torch.

model = PackedCtc.load("model.safetensors", mode="a16")
log_probs = model(features)  # (T, F) float32 -> (T', V)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from lowbit_k2.core import hubert as _representations  # noqa: F401  known, so that they are refused by their name
from lowbit_k2.core import lm as _language_models  # noqa: F401
from lowbit_k2.core import states as _probes  # noqa: F401
from lowbit_k2.core.encoders import ConformerConfig, LstmConfig
from lowbit_k2.core.models import (
    CtcConfig,
    ModelConfig,
    TransducerConfig,
    check_shapes,
    model_config_from_dict,
)
from lowbit_k2.errors import UserError
from lowbit_k2.packed import PackedModel, read_packed
from lowbit_k2.runtime.conformer import ConformerEncoder
from lowbit_k2.runtime.errors import UnsupportedError, errors_name
from lowbit_k2.runtime.layers import log_softmax
from lowbit_k2.runtime.lstm import LstmEncoder
from lowbit_k2.runtime.matrix import DEFAULT_MODE
from lowbit_k2.runtime.transducer import ContextCache, Joiner, make_decoder
from lowbit_k2.runtime.weights import Arithmetic, Weights

N = TypeVar("N", bound="PackedNetwork")


ENCODERS = {ConformerConfig: ConformerEncoder, LstmConfig: LstmEncoder}


class PackedNetwork:
    """An encoder; subclasses have what is behind it.

    Attributes:
      config: the model's settings.
      packed: all that the file holds beside tensors.
    """

    kind: ClassVar[type[ModelConfig]]  # of settings
    described: ClassVar[str]

    def __init__(self, packed: PackedModel, mode: str = DEFAULT_MODE, threads: int = 1) -> None:
        """Raises:
        UnsupportedError: another kind of model.
        UserError: tensors that do not fit its settings, or an unknown mode.
        """
        self.how = Arithmetic(mode, threads)
        if packed.extra.get("reference"):
            raise UserError(
                "it holds the latent weights of a low-bit model, as a measure of size: take the packed file"
            )
        self.config = model_config_from_dict(packed.model_config)
        settings = getattr(self.config, "encoder", None)
        if not isinstance(self.config, self.kind) or type(settings) not in ENCODERS:
            found = f"a {self.config.kind} model with an encoder {getattr(settings, 'kind', 'of its own')}"
            raise UnsupportedError(f"the runtime has Conformers and LSTMs with {self.described}, not {found}")
        if len(packed.weights) < len(packed.tensors):
            raise UnsupportedError("the runtime does not quantize activations on grids that were learned")
        check_shapes(self.config, packed.shapes, for_training=False)
        weights = Weights(packed, self.how)
        self.encoder = ENCODERS[type(settings)](settings, weights)
        self._build(weights)
        self.packed = replace(packed, tensors=())  # the library has weights in a layout of its own

    def _build(self, weights: Weights) -> None:
        """Make what is behind the encoder."""
        raise NotImplementedError

    @classmethod
    def load(cls: type[N], path: str | Path, mode: str = DEFAULT_MODE, threads: int = 1) -> N:
        """The model of a packed file.

        Args:
          mode: "exact", as the torch model computes; "a16", "a8": activations in integers of so many bits.
          threads: that work on one utterance.
        Raises:
          PackedFileError: the file is missing, damaged, foreign, or of another version.
          UnsupportedError, UserError: as the constructor, naming the file.
        """
        packed = read_packed(path)
        with errors_name(path):
            return cls(packed, mode, threads)

    def encode(self, features: np.ndarray) -> np.ndarray:
        """Encoder frames of one utterance.

        Args:
          features: (T, F), float32; T >= config.min_frames.
        Returns:
          (T', C) float32, T' = config.output_lens(T).
        Raises:
          UserError: features of another shape, or too few frames.
        """
        bands, least = self.config.num_features, self.config.min_frames
        if features.ndim != 2 or features.shape[1] != bands or len(features) < least:
            raise UserError(f"features of shape {features.shape}: an utterance is (T, {bands}) with T from {least}")
        return self.encoder(np.ascontiguousarray(features, dtype=np.float32))


class PackedCtc(PackedNetwork):
    """An encoder with a CTC head."""

    kind, described = CtcConfig, "a CTC head"

    def _build(self, weights: Weights) -> None:
        self.head = weights.linear("ctc_head")

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Log posteriors of the classes of one utterance, natural logarithm: (T, F) -> (T', V); see `encode`."""
        return log_softmax(self.head(self.encode(features)), self.how.threads)

    def blank_scores(self, log_probs: np.ndarray) -> np.ndarray:
        """(T', V) -> (T',) log-probabilities that a frame brings nothing."""
        return log_probs[:, 0]


class PackedTransducer(PackedNetwork):
    """An encoder with a prediction network and a joiner, and perhaps a CTC head.

    Attributes:
      head: None where there is none.
    """

    kind, described = TransducerConfig, "a prediction network and a joiner"

    def _build(self, weights: Weights) -> None:
        self.decoder, self.joiner = make_decoder(self.config, weights), Joiner(weights)
        self.head = weights.linear("ctc_head") if self.config.ctc_head else None

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Encoder frames of one utterance; see `encode`."""
        return self.encode(features)

    def contexts(self) -> ContextCache:
        """The joiner's second input by what was said, for one search."""
        return ContextCache(self.decoder, self.joiner)

    def log_probs(self, encoder_out: np.ndarray) -> np.ndarray:
        """Of the CTC head, which has to be there: (T', C) -> (T', V)."""
        return log_softmax(self.head(encoder_out), self.how.threads)

    def blank_scores(self, encoder_out: np.ndarray) -> np.ndarray:
        """(T', C) -> (T',) log-probabilities that a frame brings nothing: of the CTC head, or before any token."""
        if self.head is not None:
            return self.log_probs(encoder_out)[:, 0]
        logits = self.joiner(self.joiner.encoder_proj(encoder_out), self.contexts()([()]))
        return log_softmax(logits, self.how.threads)[:, 0]


NETWORKS: dict[str, type[PackedNetwork]] = {network.kind.kind: network for network in (PackedCtc, PackedTransducer)}
