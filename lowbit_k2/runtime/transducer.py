"""A stateless prediction network (models/prediction.py) and the joiner (models/transducer.py) on packed weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowbit_k2.core.models import TransducerConfig
from lowbit_k2.runtime.reference import dequantized_rows
from lowbit_k2.runtime.weights import Weights, round_inputs

BLANK = 0
GROUP = 4  # channels that a filter of the decoder's convolution sees and makes


class StatelessDecoder:
    """Embedding, convolution over the last tokens, ReLU. The embedding stays packed; rows are unpacked as needed."""

    def __init__(self, config: TransducerConfig, weights: Weights, name: str = "decoder") -> None:
        self.embedding, self.context_size = weights.tensors[f"{name}.embedding.weight"], config.context_size
        self.input_bits, self.filters = 0, None
        if self.context_size > 1:
            packed = weights.tensors[f"{name}.conv.weight"]
            self.input_bits = packed.input_bits
            self.filters = packed.dequantize().reshape(-1, GROUP, GROUP, self.context_size)  # (D / 4, 4, 4, L)

    def __call__(self, contexts: np.ndarray) -> np.ndarray:
        """The last tokens of each sequence, (M, context_size) -> vectors for the position behind, (M, D) float32."""
        rows = [dequantized_rows(self.embedding, int(token), int(token) + 1)[0] for token in contexts.flat]
        x = np.stack(rows).reshape(*contexts.shape, -1)  # (M, L, D)
        if self.filters is None:
            return np.maximum(x[:, 0], 0)
        if self.input_bits:
            x = round_inputs(x, self.input_bits, axis=(1, 2))
        groups = x.reshape(*contexts.shape, -1, GROUP)  # (M, L, D / 4, 4)
        y = np.einsum("mlgi,goil->mgo", groups, self.filters)  # (M, D / 4, 4)
        return np.maximum(y.reshape(len(x), -1), 0)  # (M, D)


class Joiner:
    """logits = output(tanh(encoder_proj(encoder) + decoder_proj(decoder)))."""

    def __init__(self, weights: Weights, name: str = "joiner") -> None:
        self.encoder_proj, self.decoder_proj, self.output = (
            weights.linear(f"{name}.{part}") for part in ("encoder_proj", "decoder_proj", "output")
        )

    def __call__(self, encoder: np.ndarray, decoder: np.ndarray) -> np.ndarray:
        """Both projected, (M, D_j) or broadcast to that -> (M, V) logits."""
        return self.output(np.tanh(encoder + decoder))


class ContextCache:
    """The joiner's second input by the last tokens: the same few come back frame after frame."""

    def __init__(self, decoder: StatelessDecoder, joiner: Joiner) -> None:
        self.decoder, self.joiner = decoder, joiner
        self.known: dict[tuple[int, ...], np.ndarray] = {}

    def __call__(self, histories: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Token sequences of any lengths -> (M, D_j)."""
        size = self.decoder.context_size
        keys = [((BLANK,) * size + tuple(tokens))[-size:] for tokens in histories]
        new = [key for key in dict.fromkeys(keys) if key not in self.known]
        if new:
            vectors = self.joiner.decoder_proj(self.decoder(np.array(new)))
            self.known.update(zip(new, vectors, strict=True))
        return np.stack([self.known[key] for key in keys])
