"""How often an attack is tried, and how often it was: a little in `make test`, more by hand.

LOWBIT_K2_TRIALS=20 pytest -m attack

A test marked `attack` counts as one trial, or as those that it counts itself; marked `attack(repeat=True)`, it is made
so many times over. A trial that shows a fault fails its test. The last lines of the report give the numbers of all.
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


def summary(passed: set[str], failed: set[str]) -> list[str]:
    """A line per test function, and one for all.

    Args:
      passed, failed: attacks, by the names of their tests.
    """
    numbers: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for test in sorted(passed | failed):
        function = test.partition("[")[0]
        numbers[function] += TRIED.get(test, 1)
        faults[function] += test in failed
    lines = [f"{number:7} trials, {faults[test]} failures: {test}" for test, number in numbers.items()]
    return [*lines, f"{sum(numbers.values()):7} trials, {sum(faults.values())} failures"] if lines else []
