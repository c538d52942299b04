"""How often an attack is tried, and how often it was: a little in `make test`, more by hand.

LOWBIT_K2_TRIALS=20 pytest tests/attacks tests/egs/test_numeric_flags.py tests/egs/test_killed_scripts.py

A trial that shows a fault fails its test; the last lines of pytest's report give the numbers of all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

TRIED: Counter[str] = Counter()  # by test


def trials(number: int) -> Iterator[int]:
    """0, 1, ... as often as asked for, counted one by one as they are taken."""
    for trial in range(factor() * number):
        count_trial()
        yield trial


def factor() -> int:
    """How many times as often as in `make test`."""
    return int(os.environ.get("LOWBIT_K2_TRIALS", "1"))


def count_trial(number: int = 1) -> None:
    """Trials of the test that is running."""
    TRIED[os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]] += number


def summary(failed: set[str]) -> list[str]:
    """A line per test, and one for all.

    Args:
      failed: tests that did.
    """
    lines = [f"{number:6} trials, {int(test in failed)} failures: {test}" for test, number in TRIED.items()]
    total = f"{sum(TRIED.values()):6} trials, {len(failed & set(TRIED))} failures"
    return [*lines, total] if lines else []
