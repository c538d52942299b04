"""Means of metrics that not every update has."""

from __future__ import annotations

from lowbit_k2.train.metrics import MetricsTracker


def test_a_metric_counts_where_it_is_measured() -> None:
    tracker = MetricsTracker()
    tracker.add({"frames": 100.0, "loss": 1.0, "loss_1": 3.0})
    tracker.add({"frames": 300.0, "loss": 2.0})
    tracker.add({"frames": 0.0, "loss": 9.0, "orthogonality": 1.0})
    assert tracker.means() == {"loss": 1.75, "loss_1": 3.0}
    assert MetricsTracker().means() == {}
