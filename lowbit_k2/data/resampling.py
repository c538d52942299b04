"""One resampler for all audio: of files that are transcribed and, behind lhotse's manifests, of corpora.

A windowed sinc, evaluated where output samples lie (J. O. Smith, "Digital audio resampling", CCRMA). Filter and length
of the result are those of torchaudio's `resample` with its default settings: six zero crossings on each side under a
squared cosine, cut off at 0.99 of the lower Nyquist frequency. Only taps that are not zero are stored, so that rates
without a common divisor, such as 16001 and 16000 Hz, take megabytes where torchaudio and lhotse take gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil, gcd
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lowbit_k2.errors import UserError

if TYPE_CHECKING:
    from lhotse import Recording

LOWEST, HIGHEST = 4_000, 384_000  # Hz: what recordings of speech have
ZERO_CROSSINGS = 6
ROLLOFF = 0.99
BLOCK = 1 << 15  # output samples that are computed at a time


def check_rate(rate: int, name: str) -> None:
    """Refuse rates that no recording of speech has.

    Raises:
      UserError: the line names the file.
    """
    if not LOWEST <= rate <= HIGHEST:
        raise UserError(
            f"{name} has a sampling rate of {rate} Hz, {LOWEST} to {HIGHEST} Hz are read: if its header is wrong, "
            "put it right, or else convert it to 16000 Hz"
        )


class Resampler:
    """Takes samples piece by piece; the pieces do not show in what comes out.

    y[j] = sum_i h(i - p_j) x[i] with p_j = j source / target, h(t) = c sinc(c t) cos^2(pi c t / 12) for |c t| < 6, and
    c = 0.99 min(1, target / source).
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        divisor = gcd(source_rate, target_rate)
        self.source, self.target = source_rate // divisor, target_rate // divisor
        cutoff = ROLLOFF * min(1.0, self.target / self.source)
        self.reach = ceil(ZERO_CROSSINGS / cutoff)  # taps on each side of a position
        fraction = np.arange(self.target) * self.source % self.target / self.target  # of positions, by phase
        taps = np.arange(-self.reach, self.reach + 2)
        t = np.clip(cutoff * (taps - fraction[:, None]), -ZERO_CROSSINGS, ZERO_CROSSINGS)  # (target, taps)
        window = np.cos(np.pi * t / (2 * ZERO_CROSSINGS)) ** 2
        self.filters = (cutoff * np.sinc(t) * window).astype(np.float32)
        self.start = -self.reach  # where `pending` begins
        self.pending = np.zeros(self.reach, dtype=np.float32)
        self.given = self.made = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """What can be told after (n,) more samples."""
        self.given += len(samples)
        self.pending = np.concatenate([self.pending, samples])
        return self._until(ceil((self.given - self.reach - 1) * self.target / self.source))

    def finish(self) -> np.ndarray:
        """The rest: silence follows. Altogether there are ceil(n target / source) samples."""
        self.pending = np.concatenate([self.pending, np.zeros(self.reach + 2, dtype=np.float32)])
        return self._until(-(-self.given * self.target // self.source))

    def _until(self, end: int) -> np.ndarray:
        """Output samples up to number `end`."""
        if end <= self.made:
            return np.zeros(0, dtype=np.float32)
        windows = sliding_window_view(self.pending, 2 * self.reach + 2)  # a view: (places, taps)
        parts = []
        for first in range(self.made, end, BLOCK):
            numbers = np.arange(first, min(first + BLOCK, end))
            places = numbers * self.source // self.target - self.reach - self.start
            parts.append(np.einsum("nk,nk->n", windows[places], self.filters[numbers % self.target]))
        self.made = end
        needed = end * self.source // self.target - self.reach  # of what is here, from this position on
        self.pending, self.start = self.pending[max(0, needed - self.start) :].copy(), max(needed, self.start)
        return np.concatenate(parts)


def resample(samples: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample (n,) samples. -> (ceil(n target / source),) float32"""
    if source_rate == target_rate:
        return samples
    return np.concatenate(list(resampled([samples], source_rate, target_rate)))


def resampled(blocks: Iterable[np.ndarray], source_rate: int, target_rate: int) -> Iterator[np.ndarray]:
    """Resample a signal that comes in blocks of (n,) samples."""
    if source_rate == target_rate:
        yield from blocks
        return
    resampler = Resampler(source_rate, target_rate)
    for block in blocks:
        yield resampler.push(block)
    yield resampler.finish()


def resample_in_lhotse() -> None:
    """Have lhotse resample by this module whenever it reads audio, in this process.

    lhotse's own `Resample` takes gigabytes for rates without a common divisor, and without torchaudio it wants scipy.
    Manifests name it as before.
    """
    import lhotse.audio.recording as recording
    from lhotse.augmentation import AudioTransform
    from lhotse.augmentation import Resample as Original

    if AudioTransform.KNOWN_TRANSFORMS["Resample"] is not Original:
        return

    @dataclass
    class Resample(Original):
        def __post_init__(self) -> None:
            self.source_sampling_rate = int(self.source_sampling_rate)
            self.target_sampling_rate = int(self.target_sampling_rate)

        def __call__(self, samples: np.ndarray, *args: object, **kwargs: object) -> np.ndarray:
            """(channels, n) -> (channels, m)"""
            rates = self.source_sampling_rate, self.target_sampling_rate
            return np.stack([resample(np.asarray(channel, dtype=np.float32), *rates) for channel in samples])

    AudioTransform.KNOWN_TRANSFORMS["Resample"] = recording.Resample = Resample


def check_recording(recording: Recording) -> None:
    """`check_rate` of a lhotse recording."""
    source = recording.sources[0].source if recording.sources else ""
    check_rate(recording.sampling_rate, source if isinstance(source, str) and source else f"recording {recording.id}")
