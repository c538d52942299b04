"""Sentences from a small grammar, so that few words recur in ever new orders; the same in every Python version.

A rule is a name and its alternatives; `<name>` in an alternative is replaced by an expansion of that rule:

    sentence: the <animal> sleeps | where is the <animal>
    animal: cat | dog
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TypeVar

Rules = dict[str, list[str]]
_SLOT = re.compile(r"<(\w+)>")
_Option = TypeVar("_Option")


def parse_grammar(text: str) -> Rules:
    """Read rules `name: alternative | alternative`; indented lines continue the rule above."""
    rules: Rules = {}
    for line in re.sub(r"\n +", " ", text).splitlines():
        if line.strip():
            name, _, alternatives = line.partition(":")
            rules[name.strip()] = [" ".join(a.split()) for a in alternatives.split("|")]
    return rules


def expand(rules: Rules, name: str, rng: random.Random) -> str:
    """Expand the rule `name`, always the leftmost slot first."""
    text = f"<{name}>"
    while (slot := _SLOT.search(text)) is not None:
        text = text[: slot.start()] + draw(rules[slot.group(1)], rng) + text[slot.end() :]
    return text


def vocabulary(rules: Rules) -> list[str]:
    """All words that the grammar can say, sorted."""
    return sorted({w for alternatives in rules.values() for a in alternatives for w in _SLOT.sub(" ", a).split()})


def draw(options: Sequence[_Option], rng: random.Random) -> _Option:
    """One of `options`. Uses rng.random() only: its sequence is the same in every Python version."""
    return options[int(rng.random() * len(options))]


def uniform_int(rng: random.Random, low: int, high: int) -> int:
    """An integer from low to high, both included, from rng.random() only."""
    return low + int(rng.random() * (high - low + 1))
