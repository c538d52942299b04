"""From espeak-ng's samples to a corpus-like recording: resampling, loudness, colour, filters and noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAMPLING_RATE = 16000
EDGE_SECONDS = 0.15  # silence (noise) before and after the speech
PEAK = 0.95


def resample(samples: np.ndarray, source_rate: int, target_rate: int = SAMPLING_RATE) -> np.ndarray:
    """Band-limited resampling by cutting (or padding) the spectrum.

    The signal is padded to a length at which both rates hold a whole number of samples, so that the result is
    exact for a periodic signal; the padding is cut off again.

    Args:
      samples: shape (n,), floating point.

    Returns:
      shape (ceil(n * target_rate / source_rate),).
    """
    divisor = int(np.gcd(source_rate, target_rate))
    source_unit, target_unit = source_rate // divisor, target_rate // divisor  # 441, 320 for 22050 -> 16000
    units = next_smooth(-(-len(samples) // source_unit))
    spectrum = np.fft.rfft(samples, units * source_unit)
    num_target = units * target_unit
    if num_target < units * source_unit:
        spectrum = spectrum[: num_target // 2 + 1]
    resampled = np.fft.irfft(spectrum, num_target) * (target_rate / source_rate)
    return resampled[: -(-len(samples) * target_rate // source_rate)]


def next_smooth(number: int) -> int:
    """The least integer >= number without prime factors over 7, for which the FFT is fast."""
    while True:
        rest = number
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return number
        number += 1


def tilt(samples: np.ndarray, brightness: float) -> np.ndarray:
    """First-order tilt y[t] = x[t] + b*x[t-1], b in (-1, 1): a microphone's colour (b < 0 brighter)."""
    return samples + brightness * np.concatenate([[0.0], samples[:-1]])


def noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit RMS with a spectrum between white and pink (power ~ f^-0.7), as of a room."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** 0.35
    samples = np.fft.irfft(spectrum, num_samples)
    return samples / np.sqrt(np.mean(samples**2))


def record(
    speech: np.ndarray, source_rate: int, brightness: float, gain: float, snr: float, rng: np.random.Generator
) -> np.ndarray:
    """Make a 16 kHz recording of synthetic speech.

    Args:
      speech: int16 samples, shape (n,), at `source_rate` Hz.
      brightness: coefficient of `tilt`.
      gain: wanted RMS of the speech in dB relative to full scale.
      snr: speech to noise in dB.

    Returns:
      int16 samples, shape (m,), at 16 kHz, with EDGE_SECONDS of noise around the speech.
    """
    clean = tilt(resample(trim(speech.astype(np.float64)), source_rate), brightness)
    edge = int(EDGE_SECONDS * SAMPLING_RATE)
    clean = np.pad(clean, edge)
    clean *= 10 ** (gain / 20) / rms(clean[edge:-edge])
    mixed = clean + 10 ** ((gain - snr) / 20) * noise(len(clean), rng)
    return to_int16(mixed)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Round samples in -1...1 to int16; what would exceed PEAK is made softer as a whole, never clipped."""
    samples = samples * min(1.0, PEAK / np.abs(samples).max())
    return np.round(samples * 32767).astype(np.int16)


def rms(samples: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(samples**2)))


def shape_spectrum(samples: np.ndarray, rate: int, curve: Sequence[tuple[float, float]]) -> np.ndarray:
    """Filter with zero phase by a curve of gains.

    Args:
      samples: shape (n,), at `rate` Hz.
      curve: points (frequency in Hz, gain in dB), frequencies rising; straight lines between them.

    Returns:
      shape (n,).
    """
    length = next_smooth(len(samples) + rate // 10)  # room for the filter's tails, which would wrap around
    frequencies, gains = zip(*curve, strict=True)
    decibels = np.interp(np.fft.rfftfreq(length, 1 / rate), frequencies, gains)
    return np.fft.irfft(np.fft.rfft(samples, length) * 10 ** (decibels / 20), length)[: len(samples)]


def trim(samples: np.ndarray, threshold: float = 100.0) -> np.ndarray:
    """Cut silence at both ends (espeak-ng adds up to half a second after a sentence)."""
    loud = np.flatnonzero(np.abs(samples) > threshold)
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples
