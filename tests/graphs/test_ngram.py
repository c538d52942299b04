"""Modified Kneser-Ney: a hand-worked example, the definition by brute force, sums to one, and irstlm."""

from __future__ import annotations

import random
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import (
    FALLBACK_DISCOUNTS,
    BackoffModel,
    adjusted_counts,
    count_ngrams,
    discounts,
    estimate,
    read_arpa,
    write_arpa,
)

Sentences = list[tuple[str, ...]]
texts = st.lists(st.lists(st.sampled_from("abcd"), max_size=6).map(tuple), min_size=1, max_size=25)


def naive_probability(sentences: Sentences, order: int, words: list[str], history: tuple[str, ...], word: str) -> float:
    """The formula read off Chen and Goodman, every count found by a scan of the text."""
    padded = [("<s>", *s, "</s>") for s in sentences]

    def occurrences(gram: tuple[str, ...]) -> list[tuple[str, ...]]:
        n = len(gram)
        return [s[i - 1 : i] for s in padded for i in range(len(s) - n + 1) if s[i : i + n] == gram]

    def count(gram: tuple[str, ...]) -> int:
        raw = len(gram) == order or gram[0] == "<s>"
        return len(occurrences(gram)) if raw else len({left for left in occurrences(gram) if left})

    def all_of_order(n: int) -> set[tuple[str, ...]]:
        return {s[i : i + n] for s in padded for i in range(len(s) - n + 1)} - {("<s>",)}

    n = len(history) + 1
    lower = naive_probability(sentences, order, words, history[1:], word) if history else 1 / (len(words) + 1)
    after = {v: count((*history, v)) for v in [*words, "</s>"]}
    total = sum(after.values())
    if total == 0:
        return lower
    d = (0.0, *discounts([count(gram) for gram in all_of_order(n)]))
    gamma = sum(d[min(c, 3)] for c in after.values()) / total
    return max(after[word] - d[min(after[word], 3)], 0) / total + gamma * lower


def test_worked_by_hand() -> None:
    # Bigrams <s>a 2, ab 1, a</s> 1, b</s> 1; words seen before: a 1, b 1, </s> 2; discounts .5, 1 (fallback).
    # Unigrams: total 4, mass .5 + .5 + 1 = 2, gamma 1/2, uniform 1/4 over a, b, c, </s>.
    model = estimate([("a", "b"), ("a",)], 2, ["a", "b", "c"])
    assert model.probabilities[0] == pytest.approx({("a",): 0.25, ("b",): 0.25, ("c",): 0.125, ("</s>",): 0.375})
    # After a: total 2, gamma (.5 + .5) / 2; after b: total 1, gamma .5; after <s>: total 2, gamma 1 / 2.
    expected = {("<s>", "a"): 0.625, ("a", "b"): 0.375, ("a", "</s>"): 0.4375, ("b", "</s>"): 0.6875}
    assert model.probabilities[1] == pytest.approx(expected)
    assert model.backoffs == pytest.approx({("<s>",): 0.5, ("a",): 0.5, ("b",): 0.5})
    assert model.probability(("a",), "c") == pytest.approx(0.0625)


def test_discounts_worked_by_hand() -> None:
    # n1..n4 = 4, 2, 1, 1: Y = 4 / 8; D1 = 1 - 2 Y 2/4, D2 = 2 - 3 Y 1/2, D3 = 3 - 4 Y 1/1
    assert discounts([1, 1, 1, 1, 2, 2, 3, 4, 9]) == pytest.approx((0.5, 1.25, 1.0))
    assert discounts([1, 2, 3]) == FALLBACK_DISCOUNTS
    assert discounts([1, 2] + [3] * 9 + [4]) == FALLBACK_DISCOUNTS  # D2 would be negative


@given(texts, st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_equals_the_definition(sentences: Sentences, order: int) -> None:
    words = ["a", "b", "c", "d", "e"]
    model = estimate(sentences, order, words)
    contexts = [h for n in range(order) for h in product(["<s>", *"abe"], repeat=n)]
    for history in random.Random(1).sample(contexts, min(6, len(contexts))):
        for word in [*words, "</s>"]:
            expected = naive_probability(sentences, order, words, history, word)
            assert model.probability(history, word) == pytest.approx(expected, abs=1e-12)


@given(texts, st.lists(st.integers(1, 3), max_size=2))
@settings(max_examples=40, deadline=None)
def test_cut_offs(sentences: Sentences, more: list[int]) -> None:
    """What is left out goes to the back-off: all still sums to one, and what stays keeps its discount."""
    words, least = ["a", "b", "c", "d"], [1, *more]
    whole, cut = estimate(sentences, 3, words), estimate(sentences, 3, words, min_counts=least)
    tables = adjusted_counts(count_ngrams(sentences, 3))
    for n, (kept, table) in enumerate(zip(cut.probabilities, tables, strict=True)):
        frequent = {g for g, c in table.items() if c >= (least[n] if n < len(least) else 1) and g != ("<s>",)}
        needed = {g[i : i + n + 1] for longer in cut.probabilities[n + 1 :] for g in longer for i in (0, 1)}
        assert frequent <= set(kept) <= frequent | needed | {(w,) for w in [*words, "</s>"]}
    for history in [(), ("a",), ("<s>",), ("b", "a"), ("<s>", "c")]:
        assert sum(cut.probability(history, w) for w in [*words, "</s>"]) == pytest.approx(1)
    if all(count == 1 for count in least):
        assert cut == whole
    for ngram in set(cut.probabilities[1]) if more == [] else ():
        assert cut.probabilities[1][ngram] == whole.probabilities[1][ngram]


def test_cut_offs_worked_by_hand() -> None:
    # Bigrams as above; all but <s>a are seen once. After a: total 2, both left out, so gamma is 1; after b likewise.
    model = estimate([("a", "b"), ("a",)], 2, ["a", "b", "c"], min_counts=[1, 2])
    assert model.probabilities[1] == pytest.approx({("<s>", "a"): 0.625})
    assert model.backoffs == pytest.approx({("<s>",): 0.5, ("a",): 1.0, ("b",): 1.0})
    assert model.probability(("a",), "b") == pytest.approx(0.25)


@pytest.mark.parametrize("wrong", [[2], [1, 0], [1, 1, 1, 1]])
def test_impossible_cut_offs_are_refused(wrong: list[int]) -> None:
    with pytest.raises(UserError, match="min_counts"):
        estimate([("a",)], 3, ["a"], min_counts=wrong)


@given(texts, st.integers(1, 4), st.sampled_from([None, "<UNK>"]))
@settings(max_examples=40, deadline=None)
def test_every_context_sums_to_one(sentences: Sentences, order: int, unknown: str | None) -> None:
    model = estimate(sentences, order, ["a", "b", "e"], unknown)  # c and d are outside the vocabulary
    assert ("<UNK>" in model.vocabulary) == (unknown is not None)
    for n in range(order):
        for history in product(["<s>", *"abce"], repeat=n):
            total = sum(model.probability(history, w) for w in model.vocabulary)
            assert total == pytest.approx(1.0, abs=1e-9), history
    assert not any(w in "cd" for table in model.probabilities for gram in table for w in gram)


def arpa_fields(path: Path) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], float]]:
    """Probabilities and back-off weights of all n-grams of an ARPA file."""
    probabilities, backoffs = {}, {}
    for line in path.read_text().splitlines():
        fields = line.split("\t")
        if len(fields) >= 2:
            gram = tuple(fields[1].split())
            probabilities[gram] = 10 ** float(fields[0])
            backoffs[gram] = 10 ** float(fields[2]) if len(fields) > 2 else 1.0
    return probabilities, backoffs


@pytest.fixture(scope="module")
def corpus() -> Sentences:
    """1500 sentences of a random bigram source over 1000 words, word i about i^-1.4 as frequent as the first."""
    rng = random.Random(3)
    words = [f"w{i}" for i in range(1, 1001)]
    weights = {w: [rng.random() ** 3 / i for i in range(1, 1001)] for w in words}
    sentences = []
    for _ in range(1500):
        sentence = [rng.choice(words[:20])]
        while rng.random() < 0.75:
            sentence += rng.choices(words, weights[sentence[-1]])
        sentences.append(tuple(sentence))
    return sentences


def test_arpa_file_holds_the_model(tmp_path: Path, corpus: Sentences) -> None:
    model = estimate(corpus, 3, sorted({w for s in corpus for w in s} | {"never"}))
    write_arpa(model, tmp_path / "lm.arpa")
    probabilities, backoffs = arpa_fields(tmp_path / "lm.arpa")
    header = (tmp_path / "lm.arpa").read_text().split("\n\\1-grams")[0]
    sizes = [f"ngram {n}={len(t) + (n == 1)}" for n, t in enumerate(model.probabilities, start=1)]
    assert header.strip() == "\n".join(["\\data\\", *sizes])
    for table in model.probabilities:
        for gram, p in table.items():
            assert probabilities[gram] == pytest.approx(p, rel=1e-6)
            assert backoffs[gram] == pytest.approx(model.backoffs.get(gram, 1.0), rel=1e-6)
    assert ("never",) in probabilities
    read = read_arpa(tmp_path / "lm.arpa")
    assert set(read.vocabulary) == set(model.vocabulary) and read.order == 3
    assert {gram: p for table in read.probabilities for gram, p in table.items()} == probabilities
    assert all(read.backoffs.get(gram, 1.0) == backoff for gram, backoff in backoffs.items())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ngram 2=", "ngram 2=1", "no whole ARPA file"),
        ("\\end\\", "", "no whole ARPA file"),
        ("\ta b", "\ta", "line 14: .* is no line of an ARPA file"),
        ("\ta b", "\ta b c d", "line 14: .* is no line of an ARPA file"),
        ("ngram 2=", "ngrams:", "line 3: .* is no line of an ARPA file"),
        ("\ta b", "x\ta b", "is no line of an ARPA file"),
    ],
)
def test_damaged_arpa_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_arpa(estimate([("a", "b"), ("b",)], 2, ["a", "b"]), tmp_path / "lm.arpa")
    whole = (tmp_path / "lm.arpa").read_text()
    assert read_arpa(tmp_path / "lm.arpa").order == 2 and whole.count(old) == 1
    (tmp_path / "lm.arpa").write_text(whole.replace(old, new))
    with pytest.raises(UserError, match=message):
        read_arpa(tmp_path / "lm.arpa")


def discounted_part(model: BackoffModel, gram: tuple[str, ...]) -> float:
    """The share of p(gram) that does not come from the lower order."""
    n = len(gram)
    return model.probabilities[n - 1][gram] - model.backoffs[gram[:-1]] * model.probabilities[n - 2][gram[1:]]


def test_against_irstlm(tmp_path: Path, corpus: Sentences) -> None:
    """irstlm counts `</s> <s>` across lines and keeps unigram mass for unknown words, so it differs in small ways:
    the discounted parts and the back-off weights are what can be compared."""
    if shutil.which("irstlm") is None:
        pytest.skip("irstlm is not installed (Debian: apt install irstlm)")
    text, arpa = tmp_path / "text", tmp_path / "irstlm.arpa"
    text.write_text("".join(f"<s> {' '.join(s)} </s>\n" for s in corpus))
    command = ["irstlm", "tlm", f"-tr={text}", "-n=3", "-lm=ImprovedKneserNey", "-ps=no", f"-oarpa={arpa}"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    theirs, their_backoffs = arpa_fields(arpa)
    model = estimate(corpus, 3, sorted({w for s in corpus for w in s}))
    for n in (2, 3):
        for gram in model.probabilities[n - 1]:
            part = theirs[gram] - their_backoffs[gram[:-1]] * theirs[gram[1:]]
            assert discounted_part(model, gram) == pytest.approx(part, abs=5e-3), gram
    for context, weight in model.backoffs.items():
        if "<s>" not in context:
            assert weight == pytest.approx(their_backoffs[context], rel=0.03), context
    known = 1 - theirs[("<unk>",)] - theirs[("<s>",)]
    rare = min(model.probabilities[0])
    for word, p in model.probabilities[0].items():
        difference = (theirs[word] - theirs[rare]) / known
        assert p - model.probabilities[0][rare] == pytest.approx(difference, abs=2e-3), word


def test_refusals() -> None:
    with pytest.raises(UserError, match="order"):
        estimate([("a",)], 0, ["a"])
    with pytest.raises(UserError, match="vocabulary is empty"):
        estimate([("a",)], 2, [])
    with pytest.raises(UserError, match="no sentence"):
        estimate([], 2, ["a"])
