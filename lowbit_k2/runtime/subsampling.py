"""The two convolutions in front of the Conformer's layers (models/subsampling.py), some frames at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lowbit_k2.core.encoders import ConformerConfig
from lowbit_k2.core.grids import BLOCK
from lowbit_k2.packed import PackedTensor
from lowbit_k2.runtime.layers import convolve, patches
from lowbit_k2.runtime.weights import Arithmetic, Linear, Weights, round_inputs

# Frames that come out of the convolutions, of which the first puts out much more than it gets; of the matrix behind.
FRAMES_AT_ONCE, OUT_AT_ONCE = 16, 128


class Subsampling:
    """Features (T, F) to frames (T', C) at a quarter of the rate."""

    def __init__(self, config: ConformerConfig, weights: Weights, name: str) -> None:
        self.config, self.how = config, weights.how
        self.input_bits = weights.tensors[f"{name}.conv1.weight"].input_bits
        filters, self.bias = weights.floats(f"{name}.conv1.weight"), weights.floats(f"{name}.conv1.bias")
        self.filters = np.ascontiguousarray(filters.reshape(len(filters), 9).T)  # (3 * 3, N)
        second = weights.tensors[f"{name}.conv2.weight"]
        self.second = SecondConvolution(second, weights.floats(f"{name}.conv2.bias"), weights.how)
        out = weights.tensors[f"{name}.out.weight"]
        # Read as the second convolution puts it out, channels last; but steps of blocks go by the order of the file.
        self.by_channel = out.granularity == "block64"
        if not self.by_channel:
            out = reordered(out, (len(out.data), len(self.bias), -1), (0, 2, 1))
        self.out = Linear(out, weights.floats(f"{name}.out.bias"), weights.how)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """features (T, F) with T >= config.min_frames."""
        frames, bands, channels = self.config.output_lens(len(features)), self.config.num_features, len(self.bias)
        bands = (bands - 1) // 2  # that the first convolution leaves
        whole = self.input_bits or self.second.input_bits  # rounded on one grid over all frames
        if self.input_bits:
            features = round_inputs(features, self.input_bits)
        step, group = (frames, frames) if whole else (FRAMES_AT_ONCE, min(OUT_AT_ONCE, frames))
        # Even frames and odd ones apart, and an even number of bands: so the inputs of a row of the kernel lie at a
        # constant distance from those of the next output, over bands and frames.
        planes = np.zeros((2, min(step, frames) + 1, bands + bands % 2, channels), np.float32)
        x = np.empty((group, planes.shape[2] // 2, channels), np.float32)
        y = np.empty((frames, self.config.d_model), np.float32)
        for first in range(0, frames, group):
            last = min(first + group, frames)
            for begin in range(first, last, step):
                count = min(step, last - begin)
                for odd in (0, 1):
                    part = planes[odd, : count + 1 - odd, :bands]  # (count + 1 or count, F', channels)
                    convolve(features[4 * begin + 2 * odd :], self.filters, self.bias, 4, part, self.how.threads)
                self.second(planes, bands, x[begin - first :][:count])
            y[first:last] = self.out(self._rows(x[: last - first, : (bands - 1) // 2]))
        return y

    def _rows(self, x: np.ndarray) -> np.ndarray:
        """What `out` multiplies, without a copy where it can be: (T, F, C) -> (T, F * C), or (T, C * F)."""
        if self.by_channel:
            return x.transpose(0, 2, 1).reshape(len(x), -1)  # (T, C * F)
        shape, strides = (len(x), x.shape[1] * x.shape[2]), (x.strides[0], x.itemsize)
        return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)


class SecondConvolution:
    """3 x 3, stride 2, no padding, then ReLU."""

    def __init__(self, weight: PackedTensor, bias: np.ndarray, how: Arithmetic) -> None:
        self.input_bits, self.shape = weight.input_bits, weight.shape
        if self.input_bits:
            weight = replace(weight, input_bits=0)
        # Blocks of steps go by the order of the file: then the inputs are laid out in that.
        self.by_channel = weight.granularity == "block64" and weight.num_weights // weight.shape[0] > BLOCK
        if self.by_channel:
            self.whole = Linear(weight, bias, how)
        else:
            rows = [reordered(weight, weight.shape, (0, 2, 3, 1), row) for row in range(3)]  # of the kernel, (N, 3, C)
            self.rows = [Linear(part, None if i else bias, how) for i, part in enumerate(rows)]

    def __call__(self, planes: np.ndarray, bands: int, out: np.ndarray) -> None:
        """Even and odd frames (2, T' + 1 or more, F' padded, C), zero behind `bands`, to (T', F' padded / 2, N).

        The last band of what comes out means nothing if F' is padded, or even.
        """
        if self.input_bits:
            planes = round_inputs(planes, self.input_bits)
        frames, (padded, channels) = len(out), planes.shape[2:]
        if self.by_channel:
            x = planes[:, : frames + 1, :bands].transpose(1, 0, 2, 3).reshape(2 * frames + 2, bands, channels)
            out, y = out[:, : (bands - 1) // 2], self.whole(patches(x, 0, frames, True))
        else:
            y = None
            for linear, x in zip(self.rows, (planes[0], planes[1], planes[0, 1:]), strict=True):
                shape, strides = (frames * padded // 2, 3 * channels), (2 * channels * x.itemsize, x.itemsize)
                y = linear(np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False), y)
        np.maximum(y.reshape(out.shape), 0, out=out)


def reordered(
    weight: PackedTensor, shape: tuple[int, ...], order: tuple[int, ...], row: int | None = None
) -> PackedTensor:
    """A tensor of that shape, without steps of blocks, with its dimensions in another order; or number `row` of the
    second of those."""
    values = (weight.values if weight.is_float else weight.codes).reshape(shape).transpose(order)
    values = np.ascontiguousarray(values if row is None else values[:, row])
    common, notes = (weight.name, weight.role, weight.encoding, values), {"input_bits": weight.input_bits}
    if weight.is_float:
        return PackedTensor.from_values(*common, **notes)
    return PackedTensor.from_codes(*common, weight.step, weight.granularity, weight.table, weight.zero_point, **notes)
