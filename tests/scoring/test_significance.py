"""MAPSSWE against NIST's sc_stats, the bootstrap against theory and a second way to compute it, and the verdicts."""

from __future__ import annotations

import math
import random
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.scoring.sclite import find_sclite
from lowbit_k2.scoring.significance import (
    Difference,
    compare,
    matched_pairs,
    paired_bootstrap,
    segment_errors,
    sign_test,
    speaker_lookup,
)
from lowbit_k2.scoring.wer import Result

REPORT = re.compile(
    r"MTCH_PR_RESULTS .* \(# segs: (\d+)\) .* \(mean: (\S+)\) \(std dev: (\S+)\) \(Z Stat: (\S+)\) \(Stat Diff: (\w+)\)"
)
END = "end"  # a word that all get right: sc_stats does not see what the second system alone inserts behind the last one


def result(name: str, ref: str, hyp: str) -> Result:
    return name, ref.split(), hyp.split()


def sc_stats(folder: Path, first: Sequence[Result], second: Sequence[Result]) -> tuple[int, float, float, bool]:
    """Segments, mean difference, Z, and whether it is significant, by NIST's programs."""
    sclite = find_sclite()
    if sclite is None:
        pytest.skip("sctk is not installed")

    def write(name: str, texts: Sequence[tuple[str, Sequence[str]]]) -> Path:
        path = folder / f"{name}.trn"
        path.write_text("".join(f"{' '.join([*words, END])} ({utterance})\n" for utterance, words in texts))
        return path

    ref = write("ref", [(u, words) for u, words, _ in first])
    sgml = b""
    for name, results in (("A", first), ("B", second)):
        hyp = write(name, [(u, words) for u, _, words in results])
        command = [sclite, "-r", ref, "trn", "-h", hyp, "trn", name, "-i", "spu_id", "-o", "sgml", "stdout"]
        sgml += subprocess.run(command, capture_output=True, check=True).stdout
    command = [sclite.with_name("sc_stats"), "-p", "-t", "mapsswe", "-v", "-n", "out"]
    subprocess.run(command, input=sgml, cwd=folder, capture_output=True, check=True)
    found = REPORT.search((folder / "out.stats.mapsswe").read_text(errors="replace"))
    return int(found[1]), float(found[2]), float(found[4]), found[5] == "Yes"


def with_end(results: Sequence[Result]) -> list[Result]:
    return [(u, [*ref, END], [*hyp, END]) for u, ref, hyp in results]


def test_segments_by_hand() -> None:
    def pairs(text: str) -> list[tuple[str | None, str | None]]:
        """`a` right, `A` wrong, `-` deleted, `+` inserted."""
        kinds = {"+": (None, "x"), "-": ("r", None)}
        return [kinds.get(c, ("r", "r" if c.islower() else "x")) for c in text]

    def errors(first: str, second: str) -> list[tuple[int, int]]:
        return list(segment_errors(pairs(first), pairs(second)))

    assert errors("aaaa", "aaaa") == []
    assert errors("Aaaa", "aaaa") == [(1, 0)]
    assert errors("AaaA", "aaaa") == [(1, 0), (1, 0)]  # two right words between them
    assert errors("AaAa", "aaaa") == [(2, 0)]  # one only
    assert errors("Aaaa", "aaaA") == [(1, 0), (0, 1)]
    assert errors("Aaaa", "aaAa") == [(1, 1)]  # of two right words one is wrong in the other system
    assert errors("a+aa", "aaa") == [(1, 0)] and errors("aaa+", "aaa") == [(1, 0)]
    assert errors("aaa", "aaa+") == [(0, 1)]
    assert errors("Aa+a", "aaa") == [(2, 0)]  # an inserted word ends what is right
    assert errors("--", "++aa") == [(2, 2)] and errors("", "+++") == [(0, 3)]


TINY = [
    ([("a-1", "a b c d", "a b c e")], [("a-1", "a b c d", "a b c d")]),
    ([("a-1", "a b c d", "a b c e"), ("a-2", "a b", "x b")], [("a-1", "a b c d", "a b c d"), ("a-2", "a b", "a b")]),
    (
        [("a-1", "a b c d", "a b c d"), ("b-1", "e f", "e f")],
        [("a-1", "a b c d", "a x c d"), ("b-1", "e f", "e f g h")],
    ),
    ([("a-1", "a b c d e f g h", "a x c d e f y h")], [("a-1", "a b c d e f g h", "a b c d e f g")]),
]


@pytest.mark.parametrize("number", range(len(TINY)))
def test_tiny_sets_are_as_nist_has_them(number: int, tmp_path: Path) -> None:
    first, second = ([result(*line) for line in system] for system in TINY[number])
    segments, mean, z, significant = sc_stats(tmp_path, first, second)
    own = matched_pairs(with_end(first), with_end(second))
    assert own.segments == segments
    assert own.mean == pytest.approx(mean, abs=6e-4) and own.z == pytest.approx(z, abs=6e-4)
    assert (abs(own.z) > 1.96) == significant == (own.p < 0.05)


def drawn(rng: random.Random, rate: float, words: list[str]) -> list[str]:
    """A recogniser with so many errors of each kind, which never repeats or swaps words."""
    hyp = []
    for word in words:
        kind = rng.random()
        hyp += [] if kind < rate else [f"x{rng.randrange(10**9)}"] if kind < 2 * rate else [word]
        hyp += [f"y{rng.randrange(10**9)}"] if rng.random() < rate else []
    return hyp


@pytest.mark.parametrize(("rate", "other"), [(0.02, 0.02), (0.05, 0.08), (0.12, 0.15), (0.1, 0.0)])
def test_larger_sets_are_as_nist_has_them(rate: float, other: float, tmp_path: Path) -> None:
    """At higher rates alignments of equal cost have different numbers of errors, and both programs may choose."""
    rng = random.Random(f"{rate} {other}")
    texts = {f"s{n % 7}-{n}": [f"w{i}" for i in range(rng.randrange(1, 25))] for n in range(120)}
    first, second = ([(u, ref, drawn(rng, r, ref)) for u, ref in texts.items()] for r in (rate, other))
    segments, mean, z, significant = sc_stats(tmp_path, first, second)
    own = matched_pairs(with_end(first), with_end(second))
    assert own.segments == segments > 10
    assert own.mean == pytest.approx(mean, abs=6e-4) and own.z == pytest.approx(z, abs=6e-4)
    assert (abs(own.z) > 1.96) == significant
    back = matched_pairs(with_end(second), with_end(first))
    assert back.z == pytest.approx(-own.z) and back.p == pytest.approx(own.p)


def test_no_errors_at_all() -> None:
    same = [result("u", "a b", "a b")]
    assert matched_pairs(same, same) == type(matched_pairs(same, same))(0, 0.0, 0.0, 1.0)


def test_sign_test() -> None:
    scipy_like = {(0, 0): 1.0, (1, 0): 1.0, (5, 0): 0.0625, (8, 1): 2 * (1 + 9) / 512, (3, 3): 1.0}
    for (worse, better), p in scipy_like.items():
        assert sign_test(worse, better) == pytest.approx(p) == pytest.approx(sign_test(better, worse))
    assert sign_test(65, 9) < 1e-9


def test_intervals_agree_with_theory() -> None:
    """Many units whose difference is normal: mean and standard error of it, and p of the two-tailed z test."""
    rng = np.random.default_rng(3)
    counts = np.stack([rng.poisson(2.0, 2000), rng.poisson(2.1, 2000), np.full(2000, 20)], axis=1)
    found = paired_bootstrap(counts)
    differences = (counts[:, 1] - counts[:, 0]) / 20
    error = differences.std(ddof=1) / math.sqrt(2000)
    assert found.absolute == pytest.approx(differences.mean())
    assert found.absolute_interval == pytest.approx(
        (differences.mean() - 1.96 * error, differences.mean() + 1.96 * error), abs=0.08 * error
    )
    z = differences.mean() / error
    assert found.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.01)
    ratio = counts[:, 1].sum() / counts[:, 0].sum()
    spread = np.std((counts[:, 1] - ratio * counts[:, 0]) / counts[:, 0].mean(), ddof=1) / math.sqrt(2000)  # delta rule
    low, high = found.relative_interval
    assert (low, high) == pytest.approx((ratio - 1 - 1.96 * spread, ratio - 1 + 1.96 * spread), abs=0.1 * spread)
    low, high = found.equivalence_interval
    assert (low, high) == pytest.approx((ratio - 1 - 1.645 * spread, ratio - 1 + 1.645 * spread), abs=0.1 * spread)


def test_the_share_of_true_intervals_is_about_right() -> None:
    rng, inside = np.random.default_rng(5), 0
    for seed in range(200):
        reference = rng.poisson(3.0, 80)
        counts = np.stack([reference, reference + rng.integers(-1, 2, 80), np.full(80, 30)], axis=1).clip(0)
        low, high = paired_bootstrap(counts, 400, seed).absolute_interval
        inside += low <= 0.0 <= high
    assert 0.88 < inside / 200 < 0.995


def difference(absolute: tuple[float, float], relative: tuple[float, float]) -> Difference:
    return Difference(0.1, 0.1, 0.0, absolute, 0.0, relative, relative, 0.5, 9)


@pytest.mark.parametrize(
    ("absolute", "relative", "verdict"),
    [
        ((0.001, 0.02), (0.01, 0.2), "worse"),
        ((-0.02, -0.001), (-0.2, -0.01), "better"),
        ((-0.001, 0.001), (-0.01, 0.01), "equivalent"),
        ((-0.001, 0.02), (-0.01, 0.2), "cannot tell"),
        ((0.001, 0.002), (0.01, 0.02), "worse, equivalent"),
        ((0.0, 0.0), (0.0, 0.0), "equivalent"),
        ((-0.001, 0.001), (-0.01, math.inf), "cannot tell"),
    ],
)
def test_verdicts(absolute: tuple[float, float], relative: tuple[float, float], verdict: str) -> None:
    assert difference(absolute, relative).verdict(0.05) == verdict


def test_cells_of_a_table() -> None:
    found = Difference(0.1, 0.1032, 0.0032, (-0.002, 0.008), 0.032, (-0.0171, 0.081), (-0.01, 0.07), 0.2, 9)
    assert found.relative_cells() == ["+3.2%", "-1.7 .. +8.1"]
    no_errors = difference((0.0, 0.1), (0.0, math.inf))
    assert no_errors.relative_cells() == ["+0.0%", "+0.0 .. +inf"]


def test_what_is_the_same_is_equivalent_and_what_is_far_worse_is_worse() -> None:
    good = [result(f"s{n % 30}-{n}", "a b c d e f", "a b c d e x") for n in range(90)]
    bad = [result(f"s{n % 30}-{n}", "a b c d e f", "a b y d e x") for n in range(90)]
    speakers = speaker_lookup({u: u.split("-")[0] for u, _, _ in good})
    same = compare([good], [good], speakers)
    assert same.pooled.verdict(0.05) == "equivalent" and (same.worse, same.better, same.pooled.units) == (0, 0, 30)
    found = compare([good, good], [bad, good], speakers)
    assert found.pooled.verdict(0.05) == "worse" and found.worse == 30 and found.pooled.units == 30
    assert [cell.difference.verdict(0.05) for cell in found.cells] == ["worse", "equivalent"]
    assert found.pooled.other == pytest.approx(1.5 * found.pooled.reference)


def test_speakers_widen_the_interval_where_their_utterances_are_alike() -> None:
    """One speaker in three is worse throughout: utterances by themselves promise more than they hold."""
    good = [result(f"s{n % 12}-{n}", "a b c d", "a b c d") for n in range(240)]
    other = [(u, ref, [*ref[:3], "x"] if int(u[1:].split("-")[0]) % 3 == 0 else ref) for u, ref, _ in good]
    by_utterance = compare([good], [other]).pooled
    by_speaker = compare([good], [other], lambda u: u.split("-")[0]).pooled

    def width(d: Difference) -> float:
        return d.absolute_interval[1] - d.absolute_interval[0]

    assert width(by_speaker) > 3 * width(by_utterance) and by_speaker.absolute == by_utterance.absolute


def test_other_utterances_are_named() -> None:
    first = [result(f"u{n}", "a", "a") for n in range(6)]
    with pytest.raises(UserError, match=r"B lacks 4 utterances \(u0, u1, u2, ...\)"):
        compare([first], [first[4:]], names=[("A", "B")])
    with pytest.raises(UserError, match=r"A lacks 1 utterances \(u0\)"):
        compare([first[1:]], [first], names=[("A", "B")])
    with pytest.raises(UserError, match="B has another reference for u0 than A"):
        compare([first[:1]], [[result("u0", "b", "a")]], names=[("A", "B")])
    with pytest.raises(UserError, match="no speaker is known of u1"):
        compare([first], [first], speaker_lookup({"u0": "s"}))
    with pytest.raises(UserError, match="no reference words"):
        compare([[result("u", "", "a")]], [[result("u", "", "")]])
