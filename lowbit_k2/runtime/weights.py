"""From the tensors of a packed file to what an encoder is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit_k2.errors import UserError
from lowbit_k2.packed import PackedModel, PackedTensor
from lowbit_k2.runtime.layers import add_norm, depthwise, layer_norm
from lowbit_k2.runtime.matrix import DEFAULT_MODE, PackedMatrix
from lowbit_k2.runtime.native import MODES
from lowbit_k2.runtime.reference import SMALLEST_MODEL_STEP, SMALLEST_NORMAL

BATCH_NORM_EPSILON = np.float32(1e-5)
WEIGHT_TOP = 127  # of floats that are rounded to 8 bits


@dataclass(frozen=True)
class Arithmetic:
    """How matrices are multiplied.

    mode: "exact", "a16" or "a8", see `PackedMatrix.matmul`.
    threads: that work on one utterance.
    """

    mode: str = DEFAULT_MODE
    threads: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"mode {self.mode!r} is unknown: take one of {', '.join(MODES)}")
        if type(self.threads) is not int or self.threads < 1:
            raise UserError(f"threads {self.threads!r}: give a number from 1")


class Linear:
    """x (T, K) -> (T, N). Weights that are floats are rounded to integers in "a8", as what they multiply is."""

    def __init__(self, weight: PackedTensor, bias: np.ndarray | None, how: Arithmetic) -> None:
        if how.mode == "a8":
            weight = rounded_floats(weight)
        self.matrix, self.bias, self.how = PackedMatrix(weight), bias, how

    def __call__(self, x: np.ndarray, to: np.ndarray | None = None) -> np.ndarray:
        """to: (T, N), to which the product is added, without the bias."""
        return self.matrix.matmul(x, self.how.mode, self.bias, self.how.threads, to, add=to is not None)


class LayerNorm:
    """Over the last dimension of (T, C)."""

    def __init__(self, scale: np.ndarray, shift: np.ndarray, how: Arithmetic) -> None:
        self.scale, self.shift, self.how = scale, shift, how

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return layer_norm(x, self.scale, self.shift, threads=self.how.threads)

    def after(self, total: np.ndarray, x: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """The norm of total += factor * x; total is changed."""
        return add_norm(total, x, factor, self.scale, self.shift, threads=self.how.threads)


class Depthwise:
    """A filter for each channel over (T, C), the running normalisation behind it folded in."""

    def __init__(self, weight: PackedTensor, bias: np.ndarray, how: Arithmetic) -> None:
        self.input_bits, self.how = weight.input_bits, how
        self.weight = weight.dequantize().reshape(weight.shape[0], -1).T  # (taps, C)
        self.bias = bias

    def fold(self, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> None:
        """Give from now on what BatchNorm makes of the output; all (C,).

        Raises:
          UserError: a variance below zero, of which NaN would come.
        """
        if (variance < 0).any():
            raise UserError("a running variance of its batch norms is negative: export the model again")
        factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
        self.weight = self.weight * factor
        self.bias = (self.bias - mean) * factor + shift

    def __call__(self, x: np.ndarray, then_swish: bool) -> np.ndarray:
        if self.input_bits:
            x = round_inputs(x, self.input_bits)
        return depthwise(x, self.weight, self.bias, self.how.threads, then_swish)


class Weights:
    """Layers by the names that the torch model gives their parameters."""

    def __init__(self, packed: PackedModel, how: Arithmetic) -> None:
        self.tensors = {name: tensor for tensor in packed.tensors for name in tensor.names}
        self.how = how

    def floats(self, name: str) -> np.ndarray:
        """A vector or another small tensor, float32."""
        return np.ascontiguousarray(self.tensors[name].dequantize())

    def embedding(self, name: str) -> PackedTensor:
        """A table whose rows are unpacked as they are needed; damaged bytes are to be known now.

        Raises:
          PackedFileError: bytes that no writer makes, or a code beyond the table.
        """
        tensor = self.tensors[f"{name}.weight"]
        if not tensor.is_float:
            tensor.codes  # noqa: B018  raises
        return tensor

    def linear(self, name: str) -> Linear:
        bias = self.floats(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        return Linear(self.tensors[f"{name}.weight"], bias, self.how)

    def layer_norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.floats(f"{name}.weight"), self.floats(f"{name}.bias"), self.how)

    def depthwise(self, name: str) -> Depthwise:
        return Depthwise(self.tensors[f"{name}.weight"], self.floats(f"{name}.bias"), self.how)


def rounded_floats(weight: PackedTensor) -> PackedTensor:
    """A tensor of floats on a grid of 8 bits for each output; any other as it is."""
    if not weight.is_float:
        return weight
    values = weight.dequantize().reshape(weight.shape[0], -1)  # (N, K)
    step = np.maximum(np.abs(values).max(axis=1) / np.float32(WEIGHT_TOP), SMALLEST_NORMAL)  # (N,)
    codes = np.rint(values / step[:, None]).astype(np.int8).reshape(weight.shape)
    common = weight.name, weight.role, "int8", codes, step, "channel"
    return PackedTensor.from_codes(*common, input_bits=weight.input_bits)


def round_inputs(x: np.ndarray, bits: int, axis: tuple[int, ...] | None = None) -> np.ndarray:
    """An array, or what `axis` runs over, on one grid of so many bits, as the model rounds a convolution's input."""
    largest = np.abs(x).max(axis=axis, keepdims=True)
    step = np.maximum(largest / np.float32(2 ** (bits - 1) - 1), SMALLEST_MODEL_STEP)
    return np.rint(x / step) * step
