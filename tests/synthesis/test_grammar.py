"""The little grammar language of the embedded corpora."""

from __future__ import annotations

import random

from lowbit_k2.synthesis.grammar import draw, expand, parse_grammar, uniform_int, vocabulary

RULES = parse_grammar("""
sentence: the <animal> sleeps | where is
  the <animal>

animal: cat | dog
""")


def test_rules_are_read_over_lines():
    assert RULES == {"sentence": ["the <animal> sleeps", "where is the <animal>"], "animal": ["cat", "dog"]}


def test_expansions_are_all_sentences_and_no_others():
    rng = random.Random(0)
    found = {expand(RULES, "sentence", rng) for _ in range(200)}
    assert found == {f"{a}{b}{c}" for b in ("cat", "dog") for a, c in (("the ", " sleeps"), ("where is the ", ""))}


def test_vocabulary_has_words_and_no_slots():
    assert vocabulary(RULES) == ["cat", "dog", "is", "sleeps", "the", "where"]


def test_draws_are_the_same_in_every_python():
    rng = random.Random(7)
    assert [draw("abcde", rng) for _ in range(8)] == list("badacbac")
    values = {uniform_int(rng, -1, 2) for _ in range(100)}
    assert values == {-1, 0, 1, 2}
