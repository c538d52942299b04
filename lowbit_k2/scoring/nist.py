"""Scores of a hypothesis against an STM reference by segment, in Python: what sclite gives, without sclite.

As in sclite, hypothesis words are dealt out to the reference segments of their channel in the order of time: a segment
takes the words whose middle lies before its end, so also those in the gap before it, and the last segment takes the
rest. Words that fall to a segment marked IGNORE_TIME_SEGMENT_IN_SCORING are not scored. Letter case does not count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from lowbit_k2.scoring.glm import HypothesisItem
from lowbit_k2.scoring.stm import IGNORED, StmSegment
from lowbit_k2.scoring.wer import WerStats
from lowbit_k2.scoring.word_network import Counts, align, hypothesis_network, reference_network

Place = tuple[str, str]  # recording and channel, in lower case


@dataclass(frozen=True)
class SegmentScore:
    """The counts of one scored segment of the reference."""

    segment: StmSegment
    counts: Counts


def place_of(recording: str, channel: str) -> Place:
    """What reference and hypothesis are matched by."""
    return recording.lower(), channel.lower()


def segment_place(segment: StmSegment) -> Place:
    return place_of(segment.recording, segment.channel)


def in_scoring_order(segments: Iterable[StmSegment]) -> list[StmSegment]:
    """By recording, channel and start, as hubscr.pl sorts them before scoring."""
    return sorted(segments, key=lambda segment: (*segment_place(segment), segment.start))


def is_scored(segment: StmSegment) -> bool:
    """Whether sclite scores a segment: unlike `StmSegment.is_ignored`, it also scores gaps that lack the mark."""
    return IGNORED not in segment.text.upper()


def deal_out(segments: Sequence[StmSegment], items: Sequence[HypothesisItem]) -> list[list[HypothesisItem]]:
    """The items of each segment; both are of one channel and sorted by time."""
    shares: list[list[HypothesisItem]] = []
    done = 0
    for number, segment in enumerate(segments, start=1):
        first, end = done, float(np.float32(segment.end))  # sclite reads the ends with so many places
        while done < len(items) and (number == len(segments) or items[done].middle < end):
            done += 1
        shares.append(list(items[first:done]))
    return shares


def score_segments(segments: Iterable[StmSegment], items: Iterable[HypothesisItem]) -> list[SegmentScore]:
    """Score all segments that are not ignored, in the order of `in_scoring_order`.

    Args:
      segments: filtered reference.
      items: filtered hypothesis, sorted by time within each channel; channels that the reference lacks do not count.

    Raises:
      UserError: braces of the reference that do not pair.
    """
    by_place: defaultdict[Place, list[StmSegment]] = defaultdict(list)
    heard: defaultdict[Place, list[HypothesisItem]] = defaultdict(list)
    for segment in in_scoring_order(segments):
        by_place[segment_place(segment)].append(segment)
    for item in items:
        heard[place_of(*item.place)].append(item)
    scores = []
    for place, mine in by_place.items():
        for segment, share in zip(mine, deal_out(mine, heard[place]), strict=True):
            if is_scored(segment):
                scores.append(SegmentScore(segment, score_text(segment.text, share)))
    return scores


def score_text(text: str, items: Iterable[HypothesisItem]) -> Counts:
    """Align a filtered reference text with the hypothesis items of its segment."""
    spoken = [[[word.word for word in words] for words in item.alternatives] for item in items]
    return align(reference_network(text), hypothesis_network(spoken))


@dataclass(frozen=True)
class ScoreStats(WerStats):
    """Counts of a subset of a test set, by NIST's rules: an optional word that was left out is correct.

    Attributes:
      segments: scored segments of the reference.
    """

    segments: int


def sum_up(scores: Iterable[SegmentScore]) -> ScoreStats:
    """The totals; the rate of totals is the average of segments weighted by their words."""
    total: Counter[str] = Counter()
    for score in scores:
        c = score.counts
        total.update(ins=c.ins, dels=c.dels, sub=c.sub, ref_words=c.corr + c.sub + c.dels, segments=1)
    return ScoreStats(*(total[field.name] for field in fields(ScoreStats)))
