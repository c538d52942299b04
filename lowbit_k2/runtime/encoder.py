"""A packed recogniser's network from features to log posteriors, without torch.

model = PackedCtc.load("model.safetensors", mode="a16")
log_probs = model(features)  # (T, F) float32 -> (T', V)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lowbit_k2.core.encoders import ConformerConfig
from lowbit_k2.core.models import CtcConfig, check_shapes, model_config_from_dict
from lowbit_k2.errors import UserError
from lowbit_k2.packed import PackedModel, read_packed
from lowbit_k2.runtime.conformer import ConformerEncoder
from lowbit_k2.runtime.layers import log_softmax
from lowbit_k2.runtime.matrix import DEFAULT_MODE
from lowbit_k2.runtime.weights import Arithmetic, Weights


class PackedCtc:
    """A Conformer with a CTC head.

    Attributes:
      config: the model's settings.
      packed: all else that the file holds.
    """

    def __init__(self, packed: PackedModel, mode: str = DEFAULT_MODE, threads: int = 1) -> None:
        """Raises:
        UserError: another kind of model, tensors that do not fit its settings, or an unknown mode.
        """
        how = Arithmetic(mode, threads)
        if packed.extra.get("reference"):
            raise UserError(
                "it holds the latent weights of a low-bit model, as a measure of size: take the packed file"
            )
        self.config = model_config_from_dict(packed.model_config)
        if not isinstance(self.config, CtcConfig) or not isinstance(self.config.encoder, ConformerConfig):
            encoder = getattr(getattr(self.config, "encoder", None), "kind", "of its own")
            raise UserError(
                f"the runtime has Conformers with a CTC head, not a {self.config.kind} model with an encoder {encoder}"
            )
        shapes = {name: tensor.shape for tensor in packed.tensors for name in tensor.names}
        check_shapes(self.config, shapes, for_training=False)
        self.packed, self._how = packed, how
        weights = Weights(packed, how)
        self.encoder = ConformerEncoder(self.config.encoder, weights)
        self.head = weights.linear("ctc_head")

    @classmethod
    def load(cls, path: str | Path, mode: str = DEFAULT_MODE, threads: int = 1) -> PackedCtc:
        """The model of a packed file.

        Args:
          mode: "exact", as the torch model computes; "a16", "a8": activations in integers of so many bits.
          threads: that work on one utterance.
        Raises:
          PackedFileError: the file is missing, damaged, foreign, or of another version.
          UserError: as the constructor, naming the file.
        """
        packed = read_packed(path)
        try:
            return cls(packed, mode, threads)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Log posteriors of the classes of one utterance, natural logarithm.

        Args:
          features: (T, F), float32; T >= config.min_frames.
        Returns:
          (T', V) float32, T' = config.output_lens(T).
        Raises:
          UserError: features of another shape, or too few frames.
        """
        bands, least = self.config.num_features, self.config.min_frames
        if features.ndim != 2 or features.shape[1] != bands or len(features) < least:
            raise UserError(f"features of shape {features.shape}: an utterance is (T, {bands}) with T from {least}")
        features = np.ascontiguousarray(features, dtype=np.float32)
        return log_softmax(self.head(self.encoder(features)), self._how.threads)
