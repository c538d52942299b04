"""Buckets of similar duration, and batches of them that keep a limit with their padding.

lhotse fills a batch until one more cut of the longest duration *seen in it* would be too much: the next may be longer
and break the limit, without bound in the last bucket, where outliers are. Here a batch is full when one more cut of
the longest duration *that its bucket may hold* would be too much, and no bucket is so wide that much would be lost by
that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lhotse.dataset.sampling.base import SamplingConstraint
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets

if TYPE_CHECKING:
    from lhotse.cut import Cut

LONGEST = 24 * 3600.0  # seconds; no cut is longer
RATIO = 1.3  # of the ends of a bucket, at most


def bucket_ends(cuts: Iterable[Cut], num_buckets: int, limit: float) -> list[float]:
    """Longest durations of the buckets but the last, ascending, in seconds.

    Each of `num_buckets` gets as many seconds of speech. Wide ones are divided, also beyond the longest cut, up to the
    duration of which two do not fit into a batch.

    Args:
      cuts: a sample of at least `num_buckets`, which is at least 2.
      limit: seconds in a batch.
    """
    cuts = list(cuts)
    shortest = min((cut.duration for cut in cuts if cut.duration > 0), default=1.0)
    last = max(shortest, min(limit / 2, LONGEST)) * RATIO
    given = [end for end in map(float, estimate_duration_buckets(cuts, num_buckets)) if shortest < end < last]
    ends = [shortest]
    for end in [*sorted(set(given)), last]:
        while end > ends[-1] * RATIO:
            ends.append(ends[-1] * RATIO)
        ends.append(end)
    return ends


class PaddedDuration(SamplingConstraint):
    """Number of cuts times the end of their bucket is at most `limit`; a single cut may be longer."""

    def __init__(self, limit: float, ends: Sequence[float]) -> None:
        self.limit, self.ends = limit, list(ends)
        self.reset()

    def reset(self) -> None:
        self.number, self.longest = 0, 0.0

    def add(self, example: Cut) -> None:
        place = bisect_left(self.ends, example.duration)
        end = self.ends[place] if place < len(self.ends) else example.duration
        self.number, self.longest = self.number + 1, max(self.longest, end)

    def exceeded(self) -> bool:
        return self.number * self.longest > self.limit

    def close_to_exceeding(self) -> bool:
        return (self.number + 1) * self.longest > self.limit

    def measure_length(self, example: Cut) -> float:
        return example.duration
