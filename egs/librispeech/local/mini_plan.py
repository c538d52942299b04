"""Who says what in the embedded corpus: speakers, splits and utterances, decided before any sound is made.

A plan is a pure function of (hours, seed). Speakers are voice variants of espeak-ng (a formant table each) with
an accent of English, a pitch and a rate of their own. No variant serves two speakers, and each speaker belongs to
one split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from mini_text import distinct_sentences

from lowbit_k2.synthesis.corpus import check_hours
from lowbit_k2.synthesis.grammar import uniform_int

DEFAULT_HOURS = 1.0
# Of the seeds 1-160 the one whose rarest dev or test word is heard most often in training (4 times).
DEFAULT_SEED = 124
UTTERANCES_PER_CHAPTER = 16
# Seconds of an average utterance = edges and pauses + words at rate 170; a least-squares fit to synthesized speech.
SECONDS_PER_UTTERANCE, SECONDS_PER_WORD = 0.66, 0.2275

SPLITS = {"train-clean-100": 0.8, "dev-clean": 0.1, "test-clean": 0.1}  # name -> share of the hours
ACCENTS = ("en-us", "en-gb-x-rp", "en-us-nyc", "en", "en-gb-scotland", "en-us", "en-gb-x-gbcwmd", "en-029")

# Variants that sound human and differ from each other in long-term spectrum or pitch. Dev and test have half
# women and half men; their accents also occur in training, as in LibriSpeech.
VOICES = {
    ("train-clean-100", "F"): "Alicia Annie anika aunty belinda f1 f3 grandma",
    ("train-clean-100", "M"): "m1 m2 m3 m4 m5 m8 Gene Jacky Lee Marco Mario Reed boris david ed ian marcelo norbert"
    " pablo travis",
    ("dev-clean", "F"): "f2 linda Andrea",
    ("dev-clean", "M"): "m7 robert miguel",
    ("test-clean", "F"): "f4 steph f5",
    ("test-clean", "M"): "Mike grandpa paul",
}


@dataclass(frozen=True)
class Speaker:
    """One synthetic reader.

    `rate` is in espeak-ng's words a minute (short words come faster), `pitch` goes from 0 to 99, `brightness` is the
    coefficient of the tilt filter of its microphone.
    """

    id: int
    split: str
    sex: str
    variant: str
    accent: str
    pitch: int
    rate: int
    brightness: float

    @property
    def voice(self) -> str:
        """espeak-ng's name of the voice."""
        return f"{self.accent}+{self.variant}"


@dataclass(frozen=True)
class Utterance:
    """One sentence of one speaker; `gain` in dB full scale (RMS), `snr` in dB against its noise."""

    id: str  # speaker-chapter-number, LibriSpeech's form
    chapter: int
    text: str  # upper case, as in LibriSpeech
    rate: int
    pitch: int
    pitch_range: int
    gain: float
    snr: float


@dataclass(frozen=True)
class Plan:
    """The corpus to make: speakers in order, and the utterances of each speaker's id."""

    hours: float
    seed: int
    speakers: tuple[Speaker, ...]
    utterances: dict[int, tuple[Utterance, ...]]

    @property
    def num_utterances(self) -> int:
        return sum(len(u) for u in self.utterances.values())


def make_plan(hours: float = DEFAULT_HOURS, seed: int = DEFAULT_SEED) -> Plan:
    """Plan about `hours` of speech. All 40 speakers take part, if with a single utterance.

    Raises:
      UserError: hours are not between 0.01 and 20.
    """
    check_hours(hours)
    speakers = make_speakers(seed)
    sentences = distinct_sentences(seed)
    utterances = {}
    for speaker in speakers:
        colleagues = sum(s.split == speaker.split for s in speakers)
        seconds = hours * 3600 * SPLITS[speaker.split] / colleagues
        utterances[speaker.id] = _plan_speaker(speaker, seconds, sentences, seed)
    return Plan(hours, seed, tuple(speakers), utterances)


def make_speakers(seed: int = DEFAULT_SEED) -> list[Speaker]:
    """The 40 speakers: 28 for training, 6 for dev, 6 for test; ids count from 9001."""
    speakers: list[Speaker] = []
    for (split, sex), variants in VOICES.items():
        for variant in variants.split():
            rng = random.Random(f"{seed} speaker {variant}")
            speaker = Speaker(
                id=9001 + len(speakers),
                split=split,
                sex=sex,
                variant=variant,
                accent=ACCENTS[len(speakers) % len(ACCENTS)],
                pitch=uniform_int(rng, 38, 62),
                rate=uniform_int(rng, 112, 152),
                brightness=round(-0.25 + 0.5 * rng.random(), 3),
            )
            speakers.append(speaker)
    return speakers


def _plan_speaker(speaker: Speaker, seconds: float, sentences: Iterator[str], seed: int) -> tuple[Utterance, ...]:
    """Give the speaker sentences until about `seconds` are full, at least one."""
    rng = random.Random(f"{seed} utterances {speaker.variant}")
    utterances: list[Utterance] = []
    while seconds > 0:
        text = next(sentences)
        words = len(text.split())
        chapter = 10 * speaker.id + len(utterances) // UTTERANCES_PER_CHAPTER
        number = len(utterances) % UTTERANCES_PER_CHAPTER
        utterances.append(
            Utterance(
                id=f"{speaker.id}-{chapter}-{number:04d}",
                chapter=chapter,
                text=text.upper(),
                rate=round(speaker.rate * (0.9 + 0.2 * rng.random())),
                pitch=speaker.pitch + uniform_int(rng, -6, 6),
                pitch_range=uniform_int(rng, 35, 65),
                gain=round(-28 + 6 * rng.random(), 2),
                snr=round(20 + 20 * rng.random(), 2),
            )
        )
        seconds -= SECONDS_PER_UTTERANCE + SECONDS_PER_WORD * words * 170 / utterances[-1].rate
    return tuple(utterances)
