"""LSTMs on packed weights, some streams side by side: layers of nn.LSTM, and the encoder of models/lstm.py.

Each goes on from the state that it has left behind, so that chunks give what the whole gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lowbit_k2.core.encoders import LstmConfig
from lowbit_k2.errors import UserError
from lowbit_k2.runtime.layers import sigmoid
from lowbit_k2.runtime.matrix import PackedMatrix
from lowbit_k2.runtime.native import MODES, check, library, pointer
from lowbit_k2.runtime.weights import BATCH_NORM_EPSILON, Arithmetic, Linear, Weights

HiddenState = tuple[np.ndarray, np.ndarray] | None  # h (N, C) and c (N, cells), float32; None: zeros


class LstmLayer:
    """One layer in one direction, with its state."""

    def __init__(self, weights: Weights, name: str, end: str = "l0") -> None:
        """end: that of torch's names, "l0", "l1", "l0_reverse"."""
        tensors, self.how = weights.tensors, weights.how
        bias = weights.floats(f"{name}.bias_ih_{end}") + weights.floats(f"{name}.bias_hh_{end}")
        self.inputs = Linear(tensors[f"{name}.weight_ih_{end}"], bias, self.how)
        self.hidden = PackedMatrix(tensors[f"{name}.weight_hh_{end}"])
        projection = tensors.get(f"{name}.weight_hr_{end}")
        self.projection = None if projection is None else PackedMatrix(projection)

    def __call__(self, x: np.ndarray, state: HiddenState = None) -> tuple[np.ndarray, HiddenState]:
        """x (T, N, K) -> (T, N, C) and the state behind it; the one given is left as it is."""
        streams, cells, width = x.shape[1], self.hidden.shape[0] // 4, self.hidden.shape[1]
        if state is None:
            state = np.zeros((streams, width), np.float32), np.zeros((streams, cells), np.float32)
        h, c = (np.array(part, dtype=np.float32, order="C") for part in state)
        return recur(self.hidden, self.projection, self.inputs(x), h, c, self.how), (h, c)


def recur(
    hidden: PackedMatrix,
    projection: PackedMatrix | None,
    gates: np.ndarray,
    h: np.ndarray,
    c: np.ndarray,
    how: Arithmetic,
) -> np.ndarray:
    """The recurrent part of a layer.

    Args:
      hidden: (4 cells, C), gates in the order i, f, g, o; projection: (C, cells).
      gates: (T, N, 4 cells), what inputs and biases add to them; they may be overwritten.
      h, c: (N, C) and (N, cells), the state, which is changed.
    Returns:
      (T, N, C).
    """
    out = np.empty((*gates.shape[:2], hidden.shape[1]), np.float32)
    loaded = library()
    if loaded is not None:
        arrays = (pointer(gates), *gates.shape[:2], pointer(h), pointer(c), pointer(out))
        handle = None if projection is None else projection.handle
        check(loaded, loaded.lbk_lstm(hidden.handle, handle, *arrays, MODES[how.mode], how.threads))
        return out
    for t, of_inputs in enumerate(gates):
        i, f, g, o = np.split(of_inputs + hidden.matmul(h, how.mode), 4, axis=-1)  # (N, cells) each
        c[:] = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        y = sigmoid(o) * np.tanh(c)
        h[:] = y if projection is None else projection.matmul(y, how.mode)
        out[t] = h
    return out


class LstmState(NamedTuple):
    """What a stream has left behind it.

    frames: (less than stack_frames, F), normalised, which wait for more.
    reduced: (0 or 1, C), which waits for its neighbour behind the layer `reduce_after`.
    layers: of each layer.
    """

    frames: np.ndarray
    reduced: np.ndarray
    layers: Sequence[HiddenState]


def joined(x: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """x (T, C) -> groups of `frames` as one, (T // frames, frames * C), and the frames left over at the end."""
    whole = len(x) // frames * frames
    return x[:whole].reshape(whole // frames, frames * x.shape[1]), x[whole:]


class LstmEncoder:
    """Features (T, F) to encoder frames (T', C) at 1 / `stack_frames` of the rate, or half of that."""

    def __init__(self, config: LstmConfig, weights: Weights, name: str = "encoder") -> None:
        self.config = config
        mean, variance = (weights.floats(f"{name}.input_norm.running_{part}") for part in ("mean", "var"))
        self.mean, self.deviation = mean, np.sqrt(variance + BATCH_NORM_EPSILON)
        directions = ("l0", "l0_reverse") if config.bidirectional else ("l0",)
        self.layers, self.norms = [], []
        for i in range(config.num_layers):
            self.layers.append([LstmLayer(weights, f"{name}.layers.{i}.lstm", end) for end in directions])
            self.norms.append(weights.layer_norm(f"{name}.layers.{i}.norm") if config.layer_norm else None)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """A whole utterance, features (T, F) with T >= config.min_frames."""
        return self._run(features, self._beginning())[0]

    def stream(self, features: np.ndarray, state: LstmState | None = None) -> tuple[np.ndarray, LstmState]:
        """The next chunk of a stream.

        Args:
          features: (T, F) float32, any T.
          state: what the chunk before has returned; None at the beginning.
        Returns:
          (T', C), the frames that have become complete, maybe none; and the state for the next chunk.
        Raises:
          UserError: the layers are bidirectional.
        """
        if self.config.bidirectional:
            raise UserError("an LSTM in both directions cannot stream: train one with --bidirectional false")
        return self._run(features, state or self._beginning())

    def _beginning(self) -> LstmState:
        config = self.config
        nothing = np.zeros((0, config.num_features), np.float32), np.zeros((0, config.d_model), np.float32)
        return LstmState(*nothing, (None,) * config.num_layers)

    def _run(self, features: np.ndarray, state: LstmState) -> tuple[np.ndarray, LstmState]:
        config = self.config
        x = ((features - self.mean) / self.deviation).astype(np.float32)
        x, frames = joined(np.concatenate([state.frames, x]), config.stack_frames)
        reduced, states = state.reduced, []
        for i, (layer, norm, hidden) in enumerate(zip(self.layers, self.norms, state.layers, strict=True)):
            if 0 < i == config.reduce_after:
                x, reduced = joined(np.concatenate([reduced, x]), 2)
            y, hidden = layer[0](x[:, None], hidden)
            x, backwards = y[:, 0], x  # (T', C)
            if config.bidirectional:
                y, _ = layer[1](backwards[::-1, None])
                x = np.concatenate([x, y[::-1, 0]], axis=1)
            x = x if norm is None else norm(x)
            states.append(hidden)
        return x, LstmState(frames, reduced, tuple(states))
