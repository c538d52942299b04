"""Prediction networks (models/prediction.py) and the joiner (models/transducer.py) on packed weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowbit_k2.core.models import LSTM, TransducerConfig
from lowbit_k2.packed import PackedTensor
from lowbit_k2.runtime.lstm import LstmLayer
from lowbit_k2.runtime.reference import dequantized_rows
from lowbit_k2.runtime.weights import Weights, round_inputs

BLANK = 0
GROUP = 4  # channels that a filter of the decoder's convolution sees and makes


class StatelessDecoder:
    """Embedding, convolution over the last tokens, ReLU. The embedding stays packed; rows are unpacked as needed.

    States are the last tokens, (M, context_size).
    """

    def __init__(self, config: TransducerConfig, weights: Weights, name: str = "decoder") -> None:
        self.embedding, self.context_size = weights.embedding(f"{name}.embedding"), config.context_size
        self.input_bits, self.filters = 0, None
        if self.context_size > 1:
            packed = weights.tensors[f"{name}.conv.weight"]
            self.input_bits = packed.input_bits
            self.filters = packed.dequantize().reshape(-1, GROUP, GROUP, self.context_size)  # (D / 4, 4, 4, L)

    def initial_state(self) -> np.ndarray:
        """Before the blank that starts every sequence, (1, context_size)."""
        return np.full((1, self.context_size), BLANK)

    def step(self, tokens: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next token of M sequences, (M,) -> vectors for the position behind it, (M, D), and the states there."""
        state = np.concatenate([state[:, 1:], tokens[:, None]], axis=1)
        return self(state), state

    def __call__(self, contexts: np.ndarray) -> np.ndarray:
        """The last tokens of each sequence, (M, context_size) -> vectors for the position behind, (M, D) float32."""
        x = embedded(self.embedding, contexts)  # (M, L, D)
        if self.filters is None:
            return np.maximum(x[:, 0], 0)
        if self.input_bits:
            x = round_inputs(x, self.input_bits, axis=(1, 2))
        groups = x.reshape(*contexts.shape, -1, GROUP)  # (M, L, D / 4, 4)
        y = np.einsum("mlgi,goil->mgo", groups, self.filters)  # (M, D / 4, 4)
        return np.maximum(y.reshape(len(x), -1), 0)  # (M, D)


class LstmDecoder:
    """Embedding, LSTM over all tokens. States are h and c of all layers, (M, 2, layers, D)."""

    context_size = None  # no number of tokens is enough to know the state

    def __init__(self, config: TransducerConfig, weights: Weights, name: str = "decoder") -> None:
        self.embedding, self.dim = weights.embedding(f"{name}.embedding"), config.decoder_dim
        self.layers = [LstmLayer(weights, f"{name}.lstm", f"l{i}") for i in range(config.decoder_layers)]

    def initial_state(self) -> np.ndarray:
        """Before the blank that starts every sequence: zeros."""
        return np.zeros((1, 2, len(self.layers), self.dim), np.float32)

    def step(self, tokens: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next token of M sequences, (M,) -> vectors for the position behind it, (M, D), and the states there."""
        x, after = embedded(self.embedding, tokens)[None], np.empty_like(state)  # (1, M, D)
        for i, layer in enumerate(self.layers):
            x, (after[:, 0, i], after[:, 1, i]) = layer(x, (state[:, 0, i], state[:, 1, i]))
        return x[0], after


Decoder = StatelessDecoder | LstmDecoder


def make_decoder(config: TransducerConfig, weights: Weights) -> Decoder:
    """The prediction network of a transducer."""
    return (LstmDecoder if config.decoder_kind == LSTM else StatelessDecoder)(config, weights)


def embedded(embedding: PackedTensor, tokens: np.ndarray) -> np.ndarray:
    """Rows of a packed table, (...,) -> (..., D)."""
    rows = [dequantized_rows(embedding, int(token), int(token) + 1)[0] for token in tokens.flat]
    return np.stack(rows).reshape(*tokens.shape, -1)


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
    """The joiner's second input by what was said: the same few come back frame after frame.

    Of a network that sees all tokens, the sequences of the last call are kept: a longer one is made of its beginning.
    """

    def __init__(self, decoder: Decoder, joiner: Joiner) -> None:
        self.decoder, self.joiner = decoder, joiner
        self.known: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
        self._learn([()], np.array([BLANK]), decoder.initial_state())

    def key(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """What the network sees of a sequence, leading blanks left out."""
        size = self.decoder.context_size
        return tuple(tokens) if size is None else tuple(tokens[-size:])

    def __call__(self, histories: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Token sequences -> (M, D_j). Each was asked for before, or goes one token beyond one that was, or is ()."""
        keys = [self.key(tokens) for tokens in histories]
        new = {key: tokens for key, tokens in zip(keys, histories, strict=True) if key not in self.known}
        if new:
            before = np.concatenate([self.known[self.key(tokens[:-1])][1] for tokens in new.values()])
            self._learn(list(new), np.array([tokens[-1] for tokens in new.values()]), before)
        if self.decoder.context_size is None:
            self.known = {key: self.known[key] for key in keys}
        return np.stack([self.known[key][0] for key in keys])

    def _learn(self, keys: Sequence[tuple[int, ...]], tokens: np.ndarray, before: np.ndarray) -> None:
        vectors, states = self.decoder.step(tokens, before)
        vectors = self.joiner.decoder_proj(vectors)
        self.known.update({key: (vectors[m], states[m : m + 1]) for m, key in enumerate(keys)})
