"""Batches keep their limit, padding included, whatever the durations are."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from lowbit_k2.data.buckets import LONGEST, RATIO, bucket_ends
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import FeatureConfig

from .conftest import lhotse

DRAWS = {
    "log-normal": lambda r: r.lognormvariate(1.2, 0.8),
    "heavy tail": lambda r: 2.0 * r.paretovariate(1.1),
    "two kinds": lambda r: r.choice([0.5, 30.0]),
    "equal": lambda r: 4.0,
    "outliers": lambda r: 900.0 if r.random() < 0.004 else r.uniform(1, 12),
}


def cuts_of(durations: list[float]) -> lhotse.CutSet:
    cuts = []
    for i, seconds in enumerate(durations):
        recording = lhotse.Recording(f"r{i}", [], 16000, int(seconds * 16000), seconds)
        cuts.append(lhotse.MonoCut(f"c{i}", 0, seconds, 0, recording=recording))
    return lhotse.CutSet.from_cuts(cuts)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("limit", "num_buckets"), [(200.0, 30), (40.0, 2), (15.0, 10)])
def test_no_batch_is_over_the_limit(name: str, limit: float, num_buckets: int) -> None:
    draw = random.Random(0)
    durations = [round(DRAWS[name](draw), 4) for _ in range(600)]
    cuts = cuts_of(durations)
    module = AsrDataModule(DataConfig(max_duration=limit, num_buckets=num_buckets), FeatureConfig())
    for epoch in (1, 2):
        batches = list(module.train_sampler(cuts, epoch))
        assert sorted(cut.id for batch in batches for cut in batch) == sorted(cuts.ids)
        sizes = [len(batch) * max(cut.duration for cut in batch) for batch in batches if len(batch) > 1]
        assert max(sizes, default=0.0) <= limit
        # and they are not needlessly small: what a perfect packing needs, and a half
        alone = sum(seconds > limit / 2 for seconds in durations)
        rest = sum(seconds for seconds in durations if seconds <= limit / 2)
        assert len(batches) <= alone + 1.6 * rest / limit + num_buckets + 20


def test_ends() -> None:
    """Ascending and close to each other, to where two cuts do not fit into a batch."""
    for durations, limit in (([1.0, 2.0, 3.0, 4.0, 100.0, 0.5], 200.0), ([1.0, 1.0], float("inf")), ([50.0] * 3, 9.0)):
        ends = bucket_ends(cuts_of(durations), 2, limit)
        assert all(1 < after / before <= RATIO * (1 + 1e-9) for before, after in pairwise(ends))
        assert ends[-1] > min(limit / 2, LONGEST) and ends[0] <= min(durations)
