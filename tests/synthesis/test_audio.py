"""Resampling, filters, noise and levels against what they are by definition."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit_k2.synthesis.audio import (
    PEAK,
    next_smooth,
    noise,
    record,
    resample,
    rms,
    shape_spectrum,
    tilt,
    to_int16,
    trim,
)

RATE = 8000


def sine(frequency: float, rate: int = RATE, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("target_rate", [8000, 16000])
@pytest.mark.parametrize("frequency", [440.0, 3000.0, 7000.0])
def test_resample_against_the_sampled_sine(frequency: float, target_rate: int):
    """A sine resampled is the sine sampled at the new rate (away from the edges), or nothing where that cannot be."""
    result = resample(sine(frequency, 22050), 22050, target_rate)
    expected = sine(frequency, target_rate) * (frequency < target_rate / 2)
    assert len(result) == target_rate
    np.testing.assert_allclose(result[500:-500], expected[500:-500], atol=5e-3)


def test_resample_removes_what_cannot_be_kept():
    assert np.abs(resample(sine(9500, 22050), 22050)[500:-500]).max() < 5e-3


@pytest.mark.parametrize(("number", "smooth"), [(1, 1), (7, 7), (11, 12), (1021, 1024), (2 * 3 * 5 * 7, 210)])
def test_next_smooth(number: int, smooth: int):
    assert next_smooth(number) == smooth


def test_record_has_the_wanted_gain_and_noise():
    rng = np.random.default_rng(0)
    speech = (8000 * sine(500, 22050, 2.0)).astype(np.int16)
    samples = record(speech, 22050, 0.0, gain=-24.0, snr=20.0, rng=rng) / 32767
    edge = int(0.15 * 16000)
    assert 20 * np.log10(rms(samples[edge:-edge])) == pytest.approx(-24.0, abs=0.2)
    assert 20 * np.log10(rms(samples[: edge - 100])) == pytest.approx(-44.0, abs=1.5)


@pytest.mark.parametrize(("frequency", "decibels"), [(100, -40.0), (1000, 0.0), (2000, -6.0), (3000, -12.0)])
def test_shape_spectrum_follows_its_curve(frequency: float, decibels: float):
    curve = ((0, -40.0), (200, -40.0), (500, 0.0), (1000, 0.0), (3000, -12.0), (4000, -12.0))
    filtered = shape_spectrum(sine(frequency), RATE, curve)
    assert len(filtered) == RATE
    gain = 20 * np.log10(rms(filtered[1000:-1000]) / np.sqrt(0.5))
    assert gain == pytest.approx(decibels, abs=0.2)


def test_shape_spectrum_does_not_wrap_around():
    """What is loud at the end must not be heard at the beginning."""
    click = np.zeros(RATE)
    click[-1] = 1.0
    curve = ((0, -60.0), (1000, 0.0), (4000, -60.0))
    assert np.abs(shape_spectrum(click, RATE, curve)[: RATE // 2]).max() < 1e-3


def test_noise_has_unit_rms_and_falls_with_frequency():
    samples = noise(40000, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(samples)) ** 2
    assert rms(samples) == pytest.approx(1.0)
    assert 10 * np.log10(power[500:600].mean() / power[16000:17600].mean()) == pytest.approx(7 * np.log10(30), abs=1.5)


def test_tilt_is_brighter_below_zero():
    low, high = sine(100), sine(3500)
    assert rms(tilt(low, -0.3)) < rms(low) and rms(tilt(high, -0.3)) > rms(high)


def test_to_int16_never_clips():
    quiet, loud = 0.5 * sine(300), 3.0 * sine(300)
    assert np.abs(to_int16(quiet)).max() == round(0.5 * 32767)
    assert to_int16(loud).dtype == np.int16 and np.abs(to_int16(loud)).max() == round(PEAK * 32767)
    np.testing.assert_allclose(to_int16(loud) / 32767, PEAK * sine(300), atol=1e-4)  # the form stays


def test_trim_cuts_what_is_quiet():
    speech = np.array([0, 50, 200, 0, 0, -300, 100, 0], np.float64)
    assert trim(speech).tolist() == [200, 0, 0, -300]
    assert trim(speech[:2]).tolist() == [0, 50]  # nothing loud: all of it
