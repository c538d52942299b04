"""A telephone line for synthetic speech: band, handset, level, noise, hum, and the other side's echo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit_k2.synthesis.audio import next_smooth, noise, rms, shape_spectrum, tilt

LINE_RATE = 8000
FLOOR = -70.0  # dB: what is left outside the band
MAINS = 60.0  # Hz
SPEECH_LEVELS = (-29.0, -21.0)  # dB re full scale
SNRS = {"train": (20.0, 38.0), "swbd": (20.0, 36.0), "callhm": (14.0, 22.0)}  # dB; callhm is the harder one
ECHOES = (-40.0, -30.0)  # dB: what each side hears of itself through the other
ECHO_DELAYS = (0.015, 0.06)  # seconds


@dataclass(frozen=True)
class Line:
    """One side's telephone and line.

    `curve` is a filter for `shape_spectrum`; `level` in dB full scale (RMS of speech), `snr` in dB, `hum` in dB
    against the speech, `drive` the strength of the carbon microphone's bend, `echo` in dB with `echo_delay` in seconds.
    """

    curve: tuple[tuple[float, float], ...]
    brightness: float
    level: float
    snr: float
    hum: float
    drive: float
    echo: float
    echo_delay: float


def draw_line(part: str, brightness: float, rng: np.random.Generator) -> Line:
    """A line as calls of `part` (train, swbd, callhm) have it."""
    low, high = rng.uniform(240, 340), rng.uniform(3250, 3450)
    handset = [(f, rng.uniform(-3, 3)) for f in (600.0, 1100.0, 1800.0, 2600.0)]
    curve = (
        (0.0, FLOOR),
        (low * 0.4, -40.0),
        (low, -3.0),
        *handset,
        (high, -3.0),
        (high + 250, -40.0),
        (4000.0, FLOOR),
    )
    return Line(
        curve=curve,
        brightness=brightness,
        level=rng.uniform(*SPEECH_LEVELS),
        snr=rng.uniform(*SNRS[part]),
        hum=rng.uniform(-55, -42),
        drive=rng.uniform(0.0, 0.3) if part == "callhm" else rng.uniform(0.0, 0.15),
        echo=rng.uniform(*ECHOES),
        echo_delay=rng.uniform(*ECHO_DELAYS),
    )


def transmit(speech: np.ndarray, line: Line) -> np.ndarray:
    """What the telephone makes of a side's speech, noise not yet added.

    Args:
      speech: shape (n,), 8 kHz, speech at an RMS of 1 and exact zeros between.

    Returns:
      shape (n,), speech at about `line.level`.
    """
    bent = speech + line.drive * (speech**2 - (speech != 0))  # even harmonics, as carbon grains give
    sent = shape_spectrum(tilt(bent, line.brightness), LINE_RATE, line.curve)
    return sent * 10 ** (line.level / 20) / rms(sent[speech != 0])


def receive(own: np.ndarray, other: np.ndarray, line: Line, rng: np.random.Generator) -> np.ndarray:
    """One channel of the recording: a side's own speech, the other side's echo, noise and hum.

    Args:
      own, other: shape (n,), of `transmit`.

    Returns:
      shape (n,).
    """
    delay = int(line.echo_delay * LINE_RATE)
    echo = np.concatenate([np.zeros(delay), other[: len(other) - delay]]) * 10 ** (line.echo / 20)
    hiss = shape_spectrum(noise(next_smooth(len(own)), rng)[: len(own)], LINE_RATE, line.curve)
    time = np.arange(len(own)) / LINE_RATE
    hum = sum(np.sin(2 * np.pi * MAINS * k * time + rng.uniform(0, 6.3)) / k for k in (1, 3, 5))
    level = 10 ** (line.level / 20)
    return own + echo + level * 10 ** (-line.snr / 20) * hiss / rms(hiss) + level * 10 ** (line.hum / 20) * hum
