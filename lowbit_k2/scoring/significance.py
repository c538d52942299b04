"""Is one system worse than another, better, equivalent, or can this test set not tell?

Two tests that look at the same utterances recognised by both:

MAPSSWE   matched pairs of segments (Gillick and Cox 1989; Pallett, Fiscus and Fisher 1990), as NIST's sc_stats has
          it. A segment holds the errors of both systems between two places where both have two correct words in a
          row, or an end of the utterance; segments are taken as independent, and the mean difference of their errors
          over its standard error as normal.
bootstrap over speakers or utterances (Bisani and Ney 2004), the same draw for both systems, which takes nothing as
          normal and, over speakers, no two utterances of one as independent. It gives the intervals.

That no difference was found does not show that there is none. Two systems are called equivalent where the 90% interval
of the relative difference lies within a margin on both sides: two one-sided tests at 5% (Schuirmann 1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import kaldialign
import numpy as np

from lowbit_k2.errors import UserError
from lowbit_k2.scoring.wer import Pair, Result, aligned, resampled_sums

GOOD_WORDS = 2  # correct words in a row, in both systems, that end a segment; NIST's number
LEVEL, ONE_SIDED_LEVEL = 0.95, 0.90
NUM_SAMPLES, SEED = 10_000, 0
NAMED = 3  # utterances in an error line


# --- matched pairs of segments -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatchedPairs:
    """MAPSSWE: segments with errors, mean difference of errors in them (first minus second system), Z, two-tailed p.

    As in sc_stats, Z is 0 where all segments differ by the same number, and with fewer than two of them.
    """

    segments: int
    mean: float
    z: float
    p: float


def matched_pairs(first: Sequence[Result], second: Sequence[Result]) -> MatchedPairs:
    """MAPSSWE of two systems on the same utterances, aligned with sclite's costs (4, 3 and 3)."""
    segments = [
        segment
        for (_, ref, hyp), (_, other_ref, other) in zip(first, second, strict=True)
        for segment in segment_errors(aligned(ref, hyp, sclite=True), aligned(other_ref, other, sclite=True))
    ]
    differences = np.array([a - b for a, b in segments], dtype=np.float64)
    mean = float(differences.mean()) if len(segments) else 0.0
    deviation = float(differences.std(ddof=1)) if len(segments) > 1 else 0.0
    z = mean / (deviation / math.sqrt(len(segments))) if deviation else 0.0
    return MatchedPairs(len(segments), mean, z, math.erfc(abs(z) / math.sqrt(2)))


def segment_errors(first: Sequence[Pair], second: Sequence[Pair]) -> Iterator[tuple[int, int]]:
    """Errors of both systems in each segment of an utterance that has any.

    Args:
      first, second: alignments with the same reference words.

    Inserted words belong to the place before the next reference word, or to the end. sc_stats does not see those that
    the second system alone has at the end of an utterance; here they count.
    """
    columns, other_columns = _by_reference_word(first), _by_reference_word(second)
    assert len(columns) == len(other_columns), (len(columns), len(other_columns))
    errors, good = (0, 0), GOOD_WORDS
    for (inserted, wrong), (other_inserted, other_wrong) in zip(columns, other_columns, strict=True):
        own = (inserted + wrong, other_inserted + other_wrong)
        errors = (errors[0] + own[0], errors[1] + own[1])
        if inserted or other_inserted:
            good = 0
        good = 0 if wrong or other_wrong else good + 1
        if good == GOOD_WORDS and any(errors):
            yield errors
            errors = (0, 0)
    if any(errors):
        yield errors


def _by_reference_word(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """(words inserted before it, whether it is wrong) for every reference word, and for the end, which never is."""
    columns, inserted = [], 0
    for ref, hyp in pairs:
        if ref is None:
            inserted += 1
            continue
        columns.append((inserted, int(ref != hyp)))
        inserted = 0
    return [*columns, (inserted, 0)]


# --- bootstrap ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Word error rates of a reference system and another, as fractions, and how they differ.

    Attributes:
      absolute, relative: other - reference, and that over the reference.
      absolute_interval, relative_interval: 95%.
      equivalence_interval: of the relative difference, 90%.
      p: two-tailed, of no difference, by the bootstrap; no smaller than one over the number of samples.
      units: speakers or utterances that were drawn.
    """

    reference: float
    other: float
    absolute: float
    absolute_interval: tuple[float, float]
    relative: float
    relative_interval: tuple[float, float]
    equivalence_interval: tuple[float, float]
    p: float
    units: int

    def relative_cells(self) -> list[str]:
        """The relative difference and its 95% interval in percent, as two cells of a table: `+3.2%`, `-1.7 .. +8.1`."""
        return [f"{100 * self.relative:+.1f}%", " .. ".join(f"{100 * end:+.1f}" for end in self.relative_interval)]

    def verdict(self, margin: float) -> str:
        """`worse`, `better`, `equivalent` (within the margin, relative), or `cannot tell`.

        A difference that is there and smaller than the margin is called by both words.
        """
        low, high = self.equivalence_interval
        within = -margin < low and high < margin
        below, above = self.absolute_interval
        if below > 0 or above < 0:
            return ("worse" if below > 0 else "better") + (", equivalent" if within else "")
        return "equivalent" if within else "cannot tell"


def paired_bootstrap(counts: np.ndarray, num_samples: int = NUM_SAMPLES, seed: int = SEED) -> Difference:
    """Draw units with replacement, the same for both systems.

    Args:
      counts: (units, 3): errors of the reference system, errors of the other, reference words; of all sets and seeds
        together.
      num_samples: of test sets; seed: of the draws.

    Raises:
      UserError: there are no reference words.
    """
    assert counts.ndim == 2 and counts.shape[1] == 3, counts.shape
    if not counts[:, 2].sum():
        raise UserError("there are no reference words to compare on")
    sums = resampled_sums(counts, num_samples, seed)
    absolute = (sums[:, 1] - sums[:, 0]) / sums[:, 2]
    tails = (absolute <= 0).mean(), (absolute >= 0).mean()
    relative = _ratio(sums[:, 1], sums[:, 0])
    reference, other, words = counts.sum(axis=0).tolist()
    return Difference(
        reference=reference / words,
        other=other / words,
        absolute=(other - reference) / words,
        absolute_interval=_interval(absolute, LEVEL),
        relative=_ratio(np.array([other]), np.array([reference])).item(),
        relative_interval=_interval(relative, LEVEL),
        equivalence_interval=_interval(relative, ONE_SIDED_LEVEL),
        p=float(min(1.0, max(2 * min(tails), 1 / len(sums)))),
        units=len(counts),
    )


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")  # infinity stays one
    return float(low), float(high)


def _ratio(other: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """other / reference - 1; where the reference has no errors infinity, or 0 if neither has. (n,)"""
    free = np.where(other > 0, math.inf, 0.0)
    return np.divide(other - reference, reference, out=free, where=reference > 0)


def sign_test(worse: int, better: int) -> float:
    """Two-tailed p of an even chance for each, by the binomial distribution; ties are left out before."""
    total, fewer = worse + better, min(worse, better)
    return min(1.0, 2 * sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total) if total else 1.0


# --- systems -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """Two systems on one test set, or with one seed."""

    difference: Difference
    pairs: MatchedPairs


@dataclass(frozen=True)
class Comparison:
    """Two systems over one or several cells.

    Attributes:
      cells: one by one.
      pooled: all together; a speaker or utterance is one unit in whatever cells it occurs.
      worse, better: units for which the other system makes more errors, or fewer, than the reference.
      sign_p: sign test over the cells.
    """

    cells: tuple[Cell, ...]
    pooled: Difference
    worse: int
    better: int
    sign_p: float


def compare(
    reference: Sequence[Sequence[Result]],
    other: Sequence[Sequence[Result]],
    unit_of: Callable[[str], str] = str,
    names: Sequence[tuple[str, str]] = (),
    num_samples: int = NUM_SAMPLES,
) -> Comparison:
    """Compare two systems by their results, cell by cell.

    Args:
      reference, other: results of each test set and seed, in the same order.
      unit_of: utterance -> what is drawn: its speaker, or itself.
      names: of the files of each cell, for errors.

    Raises:
      UserError: other utterances or reference words in a cell; they are named.
    """
    totals: dict[str, np.ndarray] = {}
    cells = []
    for number, (first, second) in enumerate(zip(reference, other, strict=True)):
        first, second = matched(first, second, names[number] if names else ("the first", "the second"))
        counts: dict[str, np.ndarray] = {}
        for (utterance, ref, hyp), (_, _, other_hyp) in zip(first, second, strict=True):
            row = np.array([_errors(ref, hyp), _errors(ref, other_hyp), len(ref)])
            for table in (counts, totals):
                table[unit_of(utterance)] = table.get(unit_of(utterance), 0) + row
        difference = paired_bootstrap(np.array(list(counts.values())), num_samples)
        cells.append(Cell(difference, matched_pairs(second, first)))
    rows = np.array(list(totals.values()))
    signs = [np.sign(cell.difference.absolute) for cell in cells]
    return Comparison(
        tuple(cells),
        paired_bootstrap(rows, num_samples),
        worse=int((rows[:, 1] > rows[:, 0]).sum()),
        better=int((rows[:, 1] < rows[:, 0]).sum()),
        sign_p=sign_test(signs.count(1), signs.count(-1)),
    )


def matched(
    first: Sequence[Result], second: Sequence[Result], names: tuple[str, str]
) -> tuple[list[Result], list[Result]]:
    """Both by utterance.

    Raises:
      UserError: an utterance that only one of them has, or whose reference differs.
    """
    tables = [{result[0]: result for result in results} for results in (first, second)]
    for own, table, other in ((names[0], tables[0], tables[1]), (names[1], tables[1], tables[0])):
        missing = sorted(set(other) - set(table))
        if missing:
            shown = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
            raise UserError(f"{own} lacks {len(missing)} utterances ({shown}): give results of the same test set")
    for utterance, (_, ref, _) in tables[0].items():
        if list(ref) != list(tables[1][utterance][1]):
            raise UserError(
                f"{names[1]} has another reference for {utterance} than {names[0]}: give results of the same test set"
            )
    order = sorted(tables[0])
    return [tables[0][u] for u in order], [tables[1][u] for u in order]


def speaker_lookup(speakers: Mapping[str, str]) -> Callable[[str], str]:
    """Utterance -> speaker.

    Raises (the function that is returned):
      UserError: an utterance without one.
    """

    def lookup(utterance: str) -> str:
        if utterance not in speakers:
            raise UserError(f"no speaker is known of {utterance}: give the cuts, or the utt2spk, of this test set")
        return speakers[utterance]

    return lookup


def _errors(ref: Sequence[str], hyp: Sequence[str]) -> int:
    return kaldialign.edit_distance(list(ref), list(hyp))["total"]
