"""Alignment by NIST's costs: against kaldialign for plain words, against all paths for networks, and marks by hand."""

from __future__ import annotations

import itertools

import kaldialign
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit_k2.errors import UserError
from lowbit_k2.scoring.word_network import (
    GAP,
    SUBSTITUTION,
    Counts,
    align,
    fits,
    hypothesis_network,
    make_word,
    reference_network,
    split_alternatives,
    tokens,
)

plain = st.lists(st.sampled_from("abc"), max_size=6)
group = st.lists(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=2), min_size=1, max_size=3)
items = st.lists(group, max_size=4)


def count(ref: str, hyp: str) -> tuple[int, int, int, int]:
    """Correct, substituted, inserted and deleted words; both sides may hold `{ a / b }`."""
    alternatives = [
        [part.split() for part in split_alternatives(token[1:-1])] if token.startswith("{") else [[token]]
        for token in tokens(hyp)
    ]
    c = align(reference_network(ref), hypothesis_network(alternatives))
    return c.corr, c.sub, c.ins, c.dels


def cost(counts: Counts) -> int:
    return SUBSTITUTION * counts.sub + GAP * (counts.ins + counts.dels)


def least_cost(ref: list[str], hyp: list[str]) -> int:
    found = kaldialign.edit_distance(ref, hyp, sclite_mode=True)
    return SUBSTITUTION * found["sub"] + GAP * (found["ins"] + found["del"])


@given(plain, plain)
def test_plain_words(ref: list[str], hyp: list[str]) -> None:
    counts = align(reference_network(" ".join(ref)), hypothesis_network([[[word]] for word in hyp]))
    assert cost(counts) == least_cost(ref, hyp)
    assert counts.corr + counts.sub + counts.dels == len(ref)
    assert counts.corr + counts.sub + counts.ins == len(hyp)


@given(items, items)
def test_networks(ref: list[list[list[str]]], hyp: list[list[list[str]]]) -> None:
    """The best of all pairs of paths."""
    text = " ".join("{ " + " / ".join(map(" ".join, group)) + " }" for group in ref)
    paths = [[sum(path, []) for path in itertools.product(*side)] for side in (ref, hyp)]
    best = min(least_cost(a, b) for a, b in itertools.product(*paths))
    assert cost(align(reference_network(text), hypothesis_network(hyp))) == best


@pytest.mark.parametrize(
    ("ref", "hyp", "expected"),
    [
        ("a b c", "A B C", (3, 0, 0, 0)),  # letter case does not count
        ("", "", (0, 0, 0, 0)),
        ("", "a b", (0, 0, 2, 0)),
        ("a b", "", (0, 0, 0, 2)),
        ("a b c", "b c d", (2, 0, 1, 1)),
        # three substitutions cost what two insertions and two deletions cost: sclite substitutes
        ("a b c", "c d e", (0, 3, 0, 0)),
        ("c d e", "a b c", (0, 3, 0, 0)),
        ("(uh) a", "a", (2, 0, 0, 0)),  # left out, and counted as correct
        ("(uh) a", "uh a", (2, 0, 0, 0)),
        ("(uh) a", "oh a", (1, 1, 0, 0)),  # cheaper than leaving it out and inserting another
        ("a", "(uh) a", (2, 0, 0, 0)),
        ("th- a", "thing a", (2, 0, 0, 0)),
        ("th- a", "a", (1, 0, 0, 1)),  # a fragment that is left out is an error,
        ("(th-) a", "a", (2, 0, 0, 0)),  # unless it is optional
        ("-ing a", "thing a", (2, 0, 0, 0)),
        ("a", "a-", (1, 0, 0, 0)),
        ("th-", "hat", (0, 1, 0, 0)),
        ("-", "a", (0, 1, 0, 0)),
        ("{ she is / she has } a", "she has a", (3, 0, 0, 0)),
        ("{ she is / she has } a", "{ she was / she has } a", (3, 0, 0, 0)),
        ("{ a b c / d }", "", (0, 0, 0, 1)),  # the alternative with the fewest errors
        ("{ a / @ } b", "b", (1, 0, 0, 0)),
        ("{ a / @ } b", "a b", (2, 0, 0, 0)),
        ("{ a / { b / c d } e } f", "c d e f", (4, 0, 0, 0)),
        ("a @ b", "a b", (2, 0, 0, 0)),
        ("a", "@", (0, 0, 0, 1)),
        ("word* a", "word a", (2, 0, 0, 0)),
    ],
)
def test_marks(ref: str, hyp: str, expected: tuple[int, int, int, int]) -> None:
    assert count(ref, hyp) == expected


def test_hypothesis_alternative_without_words() -> None:
    network = hypothesis_network([[["a"], []], [["b"]]])
    assert align(reference_network("b"), network) == Counts(corr=1)
    assert align(reference_network("a b"), network) == Counts(corr=2)


def test_words_fit() -> None:
    assert fits(make_word("Th-"), make_word("THE")) and fits(make_word("the"), make_word("th-"))
    assert not fits(make_word("the-"), make_word("th"))
    assert fits(make_word("(th-)"), make_word("this"))
    assert not fits(make_word("a"), make_word("b"))


def test_tokens() -> None:
    assert list(tokens("a {b / {c d/e}} (f) {g}h")) == ["a", "{b / {c d/e}}", "(f)", "{g}", "h"]
    assert split_alternatives(" / b c / {d / e} / ") == ["b c", "{d / e}"]
    with pytest.raises(UserError, match="braces that do not pair"):
        reference_network("a { b / c")
