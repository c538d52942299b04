"""From planned turns to sound and times: say them, lay them on the two sides' tracks, send them through the lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from mini_calls import SIDES, Call, Caller
from mini_dialogue import EVENTS, HESITATIONS, Sentence, Turn, said
from mini_line import LINE_RATE, draw_line, receive, transmit

from lowbit_k2.synthesis.audio import noise, resample, rms, shape_spectrum, to_int16, trim
from lowbit_k2.synthesis.espeak import Espeak, Prosody

GAPS = (0.15, 0.9)  # seconds between turns
OVERLAPS, OVERLAP_CHANCE = (0.05, 0.3), 0.15  # seconds that a turn begins before the other's end
MARGINS = (0.08, 0.2)  # seconds of line noise at both ends of a transcribed segment
PAUSES = (0.1, 0.4)  # seconds between sentences
ENDS = (0.5, 2.0)  # seconds of nothing before the first and after the last turn
EVENT_CURVES = {  # spectra, for `shape_spectrum`
    "[laughter]": ((0, -40), (300, -6), (700, 0), (1500, -3), (4000, -30)),
    "[noise]": ((0, -20), (200, 0), (1000, -6), (4000, -20)),
    "[vocalized-noise]": ((0, -60), (600, -20), (1800, 0), (4000, -6)),
}


@dataclass(frozen=True)
class Segment:
    """A stretch of one side, in samples at 8 kHz; no words: silence."""

    side: str
    start: int
    end: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Talk:
    """A call as it came out. The segments of each side tile 0...num_samples."""

    num_samples: int
    segments: tuple[Segment, ...]

    def side(self, side: str) -> list[Segment]:
        return [s for s in self.segments if s.side == side]


def make_call(espeak: Espeak, call: Call, rng: np.random.Generator) -> tuple[np.ndarray, Talk]:
    """Say a whole call.

    Returns:
      int16 samples, shape (num_samples, 2), at 8 kHz; and who said what when.
    """
    spoken = [say_turn(espeak, turn, call.caller(turn.side), rng) for turn in call.turns]
    segments, places = lay_out(call.turns, [len(s) for s in spoken], rng)
    num_samples = max(s.end for s in segments) + _samples(ENDS, rng)
    tracks = {side: np.zeros(num_samples) for side in SIDES}
    for turn, samples, place in zip(call.turns, spoken, places, strict=True):
        tracks[turn.side][place : place + len(samples)] += samples
    lines = {side: draw_line(call.part, call.caller(side).brightness, rng) for side in SIDES}
    sent = {side: transmit(tracks[side], lines[side]) for side in SIDES}
    channels = [receive(sent[a], sent[b], lines[a], rng) for a, b in (("A", "B"), ("B", "A"))]
    audio = np.stack([to_int16(channel) for channel in channels], axis=1)
    return audio, Talk(num_samples, tuple(tile(segments, num_samples)))


def lay_out(turns: tuple[Turn, ...], lengths: list[int], rng: np.random.Generator) -> tuple[list[Segment], list[int]]:
    """When each turn is said.

    Args:
      lengths: samples of each turn.

    Returns:
      the turns' segments, and where in its side's track the speech of each begins.
    """
    segments: list[Segment] = []
    places = []
    free = dict.fromkeys(SIDES, 0)  # where the side's last segment ends
    floor = _samples(ENDS, rng)  # where the last turn that holds the floor ends
    last_side, last_start = "", floor
    for turn, length in zip(turns, lengths, strict=True):
        before, after = _samples(MARGINS, rng), _samples(MARGINS, rng)
        if turn.is_over:
            place = last_start + int(rng.uniform(0.4, 0.9) * (floor - last_start))
        elif turn.side != last_side and rng.random() < OVERLAP_CHANCE:
            place = floor - _samples(OVERLAPS, rng)
        else:
            place = floor + _samples(GAPS, rng)
        place = max(place, free[turn.side] + before)
        segments.append(Segment(turn.side, place - before, place + length + after, turn.words))
        places.append(place)
        free[turn.side] = place + length + after
        if not turn.is_over:
            floor, last_start, last_side = place + length, place, turn.side
    return segments, places


def tile(segments: list[Segment], num_samples: int) -> Iterator[Segment]:
    """The segments of side A, then those of side B, with silence wherever nothing is said."""
    for side in SIDES:
        end = 0
        for segment in sorted((s for s in segments if s.side == side), key=lambda s: s.start):
            if segment.start > end:
                yield Segment(side, end, segment.start, ())
            yield segment
            end = segment.end
        if end < num_samples:
            yield Segment(side, end, num_samples, ())


def say_turn(espeak: Espeak, turn: Turn, caller: Caller, rng: np.random.Generator) -> np.ndarray:
    """Float samples (n,) at 8 kHz; speech has an RMS of about 1."""
    pieces: list[np.ndarray] = []
    for sentence in turn.sentences:
        if pieces:
            pieces.append(np.zeros(_samples(PAUSES, rng)))
        loudness = 10 ** (rng.uniform(-1.5, 1.5) / 20)
        pieces.extend(loudness * piece for piece in say_sentence(espeak, sentence, caller, rng))
    return np.concatenate(pieces)


def say_sentence(espeak: Espeak, sentence: Sentence, caller: Caller, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The sentence's pieces: words that are said in one go, words said laughing, events."""
    prosody = Prosody(
        rate=round(caller.rate * rng.uniform(0.9, 1.1)),
        pitch=caller.pitch + int(rng.integers(-6, 7)),
        pitch_range=int(rng.integers(35, 66)),
    )
    for kind, words in groupby(sentence.words, key=_kind):
        if kind == "event":
            for word in words:
                yield np.zeros(LINE_RATE // 20)
                yield make_event(word, rng)
            continue
        text = " ".join(said(w) + "," * (w in HESITATIONS) for w in words) + "?" * sentence.is_question
        speech = trim(espeak.synthesize(text, caller.voice, prosody).astype(np.float64))
        speech = resample(speech, espeak.sampling_rate, LINE_RATE)
        yield (laugh(speech) if kind == "laughing" else speech) / rms(speech)


def _kind(word: str) -> str:
    if word in EVENTS:
        return "event"
    return "laughing" if word.startswith("[laughter-") else "word"


def laugh(speech: np.ndarray) -> np.ndarray:
    """Speech that swells and fades five times a second."""
    return speech * (1 + 0.8 * np.sin(2 * np.pi * 5 * np.arange(len(speech)) / LINE_RATE))


def make_event(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A burst of noise for `[noise]` and breath, several for laughter; float (n,) at 8 kHz, a little below speech."""
    num_bursts = int(rng.integers(3, 6)) if kind == "[laughter]" else 1
    seconds = 0.2 if kind == "[laughter]" else rng.uniform(0.25, 0.6)
    length = int(seconds * LINE_RATE)
    burst = shape_spectrum(noise(length, rng), LINE_RATE, EVENT_CURVES[kind])
    burst *= np.sin(np.pi * np.arange(length) / length) ** 2  # swells and fades
    samples = np.tile(burst, num_bursts)
    return samples / rms(samples) * 10 ** (rng.uniform(-9, -3) / 20)


def _samples(seconds: tuple[float, float], rng: np.random.Generator) -> int:
    return int(rng.uniform(*seconds) * LINE_RATE)
