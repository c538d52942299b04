"""Log-Mel filter banks, some frames at a time as samples come in: those that training has by lhotse.

No dither, a frame per shift (Kaldi's `snip_edges` off, the ends mirrored), samples in -1 .. 1, Povey's window,
pre-emphasis 0.97, no energy, and the logarithm's argument at least float32's epsilon; the rest is the model's
`FeatureConfig`. By numpy: kaldi-native-fbank, with which the tests compare it, takes three times as long.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from lowbit_k2.core.features import SMALLEST_DEVIATION, FeatureConfig
from lowbit_k2.errors import UserError

AT_ONCE = 128  # frames that are transformed together: in the cache
PREEMPHASIS = np.float32(0.97)


def num_frames(config: FeatureConfig, num_samples: int) -> int:
    """Frames of so many samples at the features' rate."""
    return (num_samples + config.shift_samples // 2) // config.shift_samples


class Fbank:
    """Filter banks of frames.

    Frames and filters are made in float32, as Kaldi makes them: a frame's length and the weights of quiet bins depend
    on that.

    Attributes:
      shift, length: of a frame, samples.
    """

    def __init__(self, config: FeatureConfig) -> None:
        """Raises:
        UserError: settings with no samples in a frame.
        """
        if min(config.frame_shift, config.frame_length) * config.sampling_rate < 2:
            raise UserError(
                f"features of frames with less than 2 samples at {config.sampling_rate} Hz: export it again"
            )
        rate = np.float32(config.sampling_rate)
        self.shift, self.length = (
            int(rate * np.float32(0.001) * np.float32(1000 * seconds))
            for seconds in (config.frame_shift, config.frame_length)
        )
        angle = 2 * np.pi * np.arange(self.length) / (self.length - 1)
        self.window = ((0.5 - 0.5 * np.cos(angle)) ** 0.85).astype(np.float32)
        self.padded = 1 << (self.length - 1).bit_length()
        high = np.float32(config.high_freq) + (0 if config.high_freq > 0 else rate / 2)
        lowest, highest = mel(np.float32(config.low_freq)), mel(np.float32(high))
        width = (highest - lowest) / np.float32(config.num_mel_bins + 1)
        edges = lowest + np.arange(config.num_mel_bins + 2, dtype=np.float32) * width  # of triangles: (F + 2,)
        place = mel(rate / np.float32(self.padded) * np.arange(self.padded // 2, dtype=np.float32))
        used = (place > edges[0]) & (place < edges[-1])
        # Filter i rises from edge i to edge i + 1 and falls from there to edge i + 2.
        left = np.searchsorted(edges, place[used], side="left") - 1
        self.rising = (place[used] - edges[left]) / (edges[left + 1] - edges[left])
        self.falling = (edges[left + 1] - place[used]) / (edges[left + 1] - edges[left])
        self.used = slice(used.argmax(), used.argmax() + used.sum())
        begins = np.searchsorted(left, np.arange(config.num_mel_bins + 1))  # of what lies behind each edge
        self.empty = np.diff(begins, append=len(left)) == 0
        self.begins = np.minimum(begins, len(left) - 1)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """frames (T, length) float32 -> (T, F) float32."""
        x = frames - frames.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
        before = np.concatenate([x[:, :1], x[:, :-1]], axis=1)
        x = ((x - PREEMPHASIS * before) * self.window).astype(np.float64)
        spectrum = np.fft.rfft(x, self.padded)[:, self.used]  # (T, K)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        rising, falling = (self._sums(power * weights) for weights in (self.rising, self.falling))  # (T, F + 1)
        energy = rising[:, :-1] + falling[:, 1:]
        return np.log(np.maximum(energy, np.finfo(np.float32).eps)).astype(np.float32)

    def _sums(self, x: np.ndarray) -> np.ndarray:
        """Between each edge and the next: (T, K) -> (T, F + 1)."""
        sums = np.add.reduceat(x, self.begins, axis=1)
        sums[:, self.empty] = 0  # where reduceat gives a number instead
        return sums


@functools.lru_cache(maxsize=8)
def make_fbank(config: FeatureConfig) -> Fbank:
    """`Fbank`, once for each config."""
    return Fbank(config)


def mel(hertz: np.ndarray) -> np.ndarray:
    """Kaldi's scale, in float32."""
    return np.float32(1127) * np.log(1 + hertz / np.float32(700))


class FeatureStream:
    """The frames of one recording; samples that are behind are forgotten."""

    def __init__(self, config: FeatureConfig, blocks: Iterable[np.ndarray], name: str = "the audio") -> None:
        """Args:
          blocks: samples (n,), at the features' rate.
          name: of the recording, in errors.
        Raises:
          UserError: settings with no samples in a frame.
        """
        self._config, self._fbank = config, make_fbank(config)
        self._blocks, self._name, self._ended = iter(blocks), name, False
        self._samples, self._first = np.zeros(0, np.float32), 0  # those from number `first` on
        self._forgotten = 0  # frames

    def take(self, start: int, stop: int) -> np.ndarray:
        """Frames start .. stop-1, of which the recording has to have enough: (stop - start, F) float32.

        Frames before `start` cannot be asked for any more.

        Raises:
          UserError: samples that are not finite, or what reading them raises.
        """
        assert start >= self._forgotten, (start, self._forgotten)
        self._read(self._begin(stop - 1) + self._fbank.length)
        assert not self._ended or stop <= num_frames(self._config, self._count), (stop, self._count)
        self._forgotten, kept = start, max(self._begin(start) - self._fbank.length, 0)  # the end is mirrored
        self._samples, self._first = self._samples[max(kept - self._first, 0) :], max(kept, self._first)
        parts = [self._features(begin, min(begin + AT_ONCE, stop)) for begin in range(start, stop, AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros((0, self._config.num_mel_bins), np.float32)

    @property
    def _count(self) -> int:
        """Samples that were read."""
        return self._first + len(self._samples)

    def _begin(self, frame: int) -> int:
        """Number of a frame's first sample, below 0 where that is mirrored."""
        shift, length = self._fbank.shift, self._fbank.length
        return shift * frame + shift // 2 - length // 2

    def _read(self, count: int) -> None:
        """So many samples, if there are."""
        blocks, total = [self._samples], self._count
        while total < count and not self._ended:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
                break
            if not np.isfinite(block).all():
                raise UserError(f"{self._name} holds samples that are not finite numbers")
            blocks.append(block.astype(np.float32, copy=False))
            total += len(block)
        self._samples = np.concatenate(blocks) if len(blocks) > 1 else self._samples

    def _features(self, start: int, stop: int) -> np.ndarray:
        begin, shift, length = self._begin(start), self._fbank.shift, self._fbank.length
        end = begin + (stop - start - 1) * shift + length
        if begin >= self._first and end <= self._count:
            samples = self._samples[begin - self._first : end - self._first]
        else:
            places = np.arange(begin, end) % (2 * self._count)
            samples = self._samples[np.where(places < self._count, places, 2 * self._count - 1 - places) - self._first]
        shape, strides = (stop - start, length), (shift * samples.itemsize, samples.itemsize)
        samples = np.ascontiguousarray(samples)
        return self._fbank(np.lib.stride_tricks.as_strided(samples, shape, strides, writeable=False))


def normalize(features: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """What data/features.py's `normalize_features` makes of an utterance: (T, F) -> (T, F)."""
    if config.normalize == "none":
        return features
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    if config.normalize == "utterance":
        return centred
    deviation = np.sqrt(np.square(centred).mean(axis=0, dtype=np.float64)).astype(np.float32)
    return centred / np.maximum(deviation, np.float32(SMALLEST_DEVIATION))
