"""Random conversations for the scorers: references with all of NIST's marks, hypotheses with errors of every kind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lowbit_k2.scoring.ctm import CtmWord, share_out
from lowbit_k2.scoring.sclite import find_sclite
from lowbit_k2.scoring.stm import IGNORED, StmSegment

MINI_GLM = Path(__file__).resolve().parents[2] / "egs/switchboard/local/mini.glm"
VOCABULARY = """
i you the a and uh um well okay yeah she's he's gonna colour colours going to she is has know well-known on-line online
uh-huh because 'cause things house of out kind like don't we'll they've what's i'd goodbye can't centre mm %uh mm-hmm
it's travelling end good bye program o. k. two-thirds
"""
WORDS = VOCABULARY.split()
NOISE = ["%noise", "%laugh", "uh-uh", "mhm"]

needs_sctk = pytest.mark.skipif(find_sclite() is None, reason="NIST's sclite is not installed (Debian package sctk)")


def reference_token(rng: random.Random) -> str:
    """A word, or one of the marks: optional word, fragment, alternatives (nested too), hesitation."""
    word, other = rng.choice(WORDS), rng.choice(WORDS)
    marks = [
        (0.06, f"({rng.choice(['%HESITATION', 'the', 'uh', 'kind'])})"),
        (0.04, word.split("-")[0][: max(1, len(word) // 2)] + "-"),
        (0.02, "-" + word[len(word) // 2 :].strip("-")),
        (0.02, f"({word[:2].strip('-')}-)"),
        (0.04, "{ " + " / ".join(" ".join(rng.choices(WORDS, k=rng.randint(1, 3))) for _ in range(2)) + " }"),
        (0.01, f"{{ {word} / @ }}"),
        (0.01, f"{{ {word} / {{ {other} / @ }} {other} }}"),
        (0.01, "(the house)"),
    ]
    pick = rng.random()
    for share, token in marks:
        pick -= share
        if pick < 0:
            return token
    return word


def make_reference(rng: random.Random) -> list[StmSegment]:
    """Some recordings of one or two channels, with gaps, overlaps, empty and ignored segments, labels or none."""
    segments = []
    for number in range(rng.randint(1, 4)):
        for channel in "AB"[: rng.choice([1, 2, 2])]:
            time = 0.0
            for _ in range(rng.randint(1, 6)):
                start = round(time + rng.choice([0, 0, 0.37, 1.2]), 2)
                end = round(start + rng.uniform(0.3, 4), 2)
                text = " ".join(reference_token(rng) for _ in range(rng.randint(0, 9)))
                text = IGNORED if rng.random() < 0.08 else text
                labels = ("O", "sw", "F") if rng.random() < 0.8 else ()
                name = f"sw_{4000 + number}"
                segments.append(StmSegment(name, channel, f"{name}_{channel}", start, end, labels, text))
                time = end - (0.2 if rng.random() < 0.1 else 0)
    return segments


def make_hypothesis(segments: list[StmSegment], rng: random.Random) -> list[CtmWord]:
    """The words of the segments with errors; some segments and channels are silent, some words are in no segment."""
    places = sorted({(segment.recording, segment.channel) for segment in segments})
    silent = [place for place in places if rng.random() < 0.12]
    words = []
    for segment in segments:
        place = (segment.recording, segment.channel)
        if place in silent or rng.random() < 0.15:
            continue
        words += share_out(*place, segment.start, segment.end - segment.start, perturb(segment.text, rng))
        if rng.random() < 0.05:
            words += share_out(*place, segment.end + 30, 2.0, ["after", "the", "end"])
    return sorted(words, key=lambda word: (word.recording, word.channel, word.start))


def perturb(text: str, rng: random.Random) -> list[str]:
    """What a recogniser might hear: marks gone, words lost, changed and put in."""
    heard = []
    for mark in "{}/":
        text = text.replace(mark, " ")
    for word in text.replace(IGNORED, "nobody knows").split():
        kind = rng.choices(["same", "lost", "changed", "added"], [70, 10, 12, 8])[0]
        if kind == "added":
            heard.append(rng.choice(WORDS + NOISE))
        if kind != "lost":
            heard.append(rng.choice(WORDS) if kind == "changed" else word.strip("()-%@").lower() or "uh")
    return heard


def make_calls(seed: int) -> tuple[list[StmSegment], list[CtmWord]]:
    """Reference and hypothesis, sorted."""
    rng = random.Random(seed)
    segments = make_reference(rng)
    return segments, make_hypothesis(segments, rng)
