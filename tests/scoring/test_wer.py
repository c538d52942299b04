"""Word error rates against dynamic programming written out, and icefall's formats to the letter."""

from __future__ import annotations

from pathlib import Path

import kaldialign
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit_k2.scoring.recogs import write_recogs
from lowbit_k2.scoring.wer import (
    WerStats,
    as_characters,
    bootstrap_interval,
    score,
    write_errs,
    write_speakers,
    write_summary,
)

words = st.lists(st.sampled_from("abc"), max_size=7)
RESULTS = [("u2", ["A", "B", "C"], ["A", "X", "Y", "C"]), ("u1", ["D"], []), ("u3", ["E", "E"], ["E", "E"])]


def edit_distance(ref: list[str], hyp: list[str]) -> int:
    """Levenshtein distance, the textbook table."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(hyp) + 1)] for i in range(len(ref) + 1)]
    for i in range(1, len(ref) + 1):
        for j in range(1, len(hyp) + 1):
            change = table[i - 1][j - 1] + (ref[i - 1] != hyp[j - 1])
            table[i][j] = min(change, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[-1][-1]


@given(st.lists(st.tuples(words, words), max_size=5))
@settings(max_examples=100, deadline=None)
def test_counts(pairs: list[tuple[list[str], list[str]]]) -> None:
    stats = score([(str(n), ref, hyp) for n, (ref, hyp) in enumerate(pairs)])
    assert stats.errors == sum(edit_distance(ref, hyp) for ref, hyp in pairs)
    assert stats.ref_words == sum(len(ref) for ref, _ in pairs)
    assert stats.ins - stats.dels == sum(len(hyp) - len(ref) for ref, hyp in pairs)


signs = st.lists(st.sampled_from(["*", "***", "\0", "\0\0", "->", "(a->b)", "a"]), max_size=6)


@given(st.lists(st.tuples(signs, signs), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_word_may_be_a_word(tmp_path_factory: pytest.TempPathFactory, pairs: list) -> None:
    """Totals and sections of the error file agree, whatever the words are: none is taken for a gap."""
    path = tmp_path_factory.mktemp("errs") / "errs.txt"
    stats = write_errs(path, [(str(n), ref, hyp) for n, (ref, hyp) in enumerate(pairs)])
    sections = path.read_text().split("\nSUBSTITUTIONS: count ref -> hyp\n")[1]
    substituted, rest = sections.split("\nDELETIONS: count ref\n")
    deleted, rest = rest.split("\nINSERTIONS: count hyp\n")
    inserted, by_word = rest.split("\nPER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp\n")
    sums = [sum(int(line.split()[0]) for line in part.splitlines()) for part in (inserted, deleted, substituted)]
    assert sums == [stats.ins, stats.dels, stats.sub]
    counts = [list(map(int, line.split()[-4:])) for line in by_word.splitlines()]
    assert sum(ref for _, _, ref, _ in counts) == stats.ref_words == sum(len(ref) for ref, _ in pairs)
    assert sum(hyp for *_, hyp in counts) == sum(len(hyp) for _, hyp in pairs)


@given(st.lists(st.tuples(words, words), max_size=5))
@settings(max_examples=50, deadline=None)
def test_character_errors(pairs: list[tuple[list[str], list[str]]]) -> None:
    results = [(str(n), [w * 2 for w in ref], [w * 2 for w in hyp]) for n, (ref, hyp) in enumerate(pairs)]
    stats = score(as_characters(results))
    assert stats.errors == sum(edit_distance(list("".join(ref)), list("".join(hyp))) for _, ref, hyp in results)
    assert stats.ref_words == sum(2 * len(ref) for ref, _ in pairs)


def test_what_a_character_is() -> None:
    """Without spaces, accents with their letters; a language without spaces between words has a rate that tells."""
    [(_, ref, hyp)] = as_characters([("u", ["今天天气", "很好"], ["今天天汽很好"])])
    assert ref == list("今天天气很好") and score([("u", ref, hyp)]).sub == 1
    [(_, ref, hyp)] = as_characters([("u", ["e\u0301te\u0301"], ["\u00e9t\u00e9"])])
    assert ref == hyp and len(ref) == 3
    [(_, ref, hyp)] = as_characters([("u", ["o\u0323\u0301"], ["o\u0323"])])  # Yoruba: the tone is a mark of its own
    assert score([("u", ref, hyp)]).errors == 1


def test_speakers(tmp_path: Path) -> None:
    write_speakers(tmp_path / "speakers.txt", RESULTS, {"u1": "anna", "u2": "bob", "u3": "bob"})
    lines = (tmp_path / "speakers.txt").read_text().splitlines()
    rows = [line.split() for line in lines]
    assert ["anna", "1", "1", "0", "1", "0", "100.00"] in rows and ["bob", "2", "5", "1", "0", "1", "40.00"] in rows
    assert lines[-1] == "mean over 2 speakers: 70.00"


def test_the_line() -> None:
    assert str(WerStats(127, 88, 927, 52576)) == "%WER 2.17% [1142 / 52576, 127 ins, 88 del, 927 sub ]"
    assert str(WerStats(0, 0, 0, 0)) == "%WER 0.00% [0 / 0, 0 ins, 0 del, 0 sub ]"
    assert score([("u", [], ["A"])]).rate == float("inf")


def test_recogs(tmp_path: Path) -> None:
    write_recogs(tmp_path / "recogs-test.txt", RESULTS)
    assert (tmp_path / "recogs-test.txt").read_text().splitlines()[:4] == [
        "u1:\tref=['D']",
        "u1:\thyp=[]",
        "u2:\tref=['A', 'B', 'C']",
        "u2:\thyp=['A', 'X', 'Y', 'C']",
    ]


def test_errs(tmp_path: Path) -> None:
    stats = write_errs(tmp_path / "errs-test.txt", RESULTS)
    assert (stats.ins, stats.dels, stats.sub, stats.ref_words) == (1, 1, 1, 6)
    text = (tmp_path / "errs-test.txt").read_text()
    lines = text.splitlines()
    assert lines[0] == "%WER 50.00% [3 / 6, 1 ins, 1 del, 1 sub ]"
    assert lines[1] == "Errors: 1 insertions, 1 deletions, 1 substitutions, over 6 reference words (4 correct)"
    assert "u1:\t(D->*)" in lines and "u2:\tA (B->X Y) C" in lines and "u3:\tE E" in lines
    sections = text.split("PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp\n")[1].splitlines()
    assert "E   2 0 2 2" in sections and "D   0 1 1 0" in sections and "B   0 1 1 0" in sections
    assert "1   D" in text.split("DELETIONS: count ref\n")[1].split("\n\n")[0]


def test_summary(tmp_path: Path) -> None:
    write_summary(tmp_path / "s.txt", {"lm_scale_1.0": WerStats(0, 0, 2, 8), "lm_scale_0.5": WerStats(0, 1, 0, 8)})
    assert (tmp_path / "s.txt").read_text() == "settings\tWER\nlm_scale_0.5\t12.50\nlm_scale_1.0\t25.00\n"


def test_bootstrap_interval() -> None:
    results = [(str(n), ["A"] * 5, ["A"] * 5 if n % 4 else ["B"] + ["A"] * 4) for n in range(400)]
    low, high = bootstrap_interval(results)
    assert (low, high) == bootstrap_interval(results)
    assert low < score(results).rate < high
    theirs = kaldialign.bootstrap_wer_ci([r for _, r, _ in results], [h for _, _, h in results])
    assert (low, high) == pytest.approx((theirs["ci95min"], theirs["ci95max"]), abs=1e-3)
    # 100 of 400 utterances with one error in five words: 0.05 +- 1.96 * sqrt(.25 * .75 / 400) / 5
    assert (low, high) == pytest.approx((0.05 - 0.0085, 0.05 + 0.0085), abs=1e-3)


def test_bootstrap_of_a_perfect_result() -> None:
    assert bootstrap_interval([("u", ["A"], ["A"]), ("v", [], [])]) == (0.0, 0.0)
