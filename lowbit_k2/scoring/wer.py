"""Word and character error rates and icefall's files: errs-*.txt, wer-summary-*.txt.

    %WER 2.17% [1142 / 52576, 127 ins, 88 del, 927 sub ]

Character errors are those of the same words as sequences of characters (NFC: a letter with its accent is one where
Unicode has it, a mark that it has no such letter for counts by itself); what is between words is not counted.

Alignments are kaldialign's, of least total cost with insertions, deletions and substitutions at 1 each.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import kaldialign
import numpy as np

from lowbit_k2.fileio import atomic_write
from lowbit_k2.tables import text_table

GAP = "*"  # icefall's sign of nothing on one side of an alignment, where one is shown; it may be a word as well
MOST_DRAWN = 1 << 20  # units of the bootstrap at a time
Pair = tuple[str | None, str | None]  # reference and hypothesis; None: nothing
Result = tuple[str, Sequence[str], Sequence[str]]  # utterance, reference words, hypothesis words
Group = TypeVar("Group")


@dataclass(frozen=True)
class WerStats:
    """Errors of a test set; `rate` is their share of the reference words."""

    ins: int
    dels: int
    sub: int
    ref_words: int

    @property
    def errors(self) -> int:
        return self.ins + self.dels + self.sub

    @property
    def corr(self) -> int:
        """Reference words that were recognised."""
        return self.ref_words - self.dels - self.sub

    @property
    def rate(self) -> float:
        """Errors per reference word; without reference words 0, or infinity where there are insertions."""
        if self.ref_words:
            return self.errors / self.ref_words
        return float("inf") if self.errors else 0.0

    def __str__(self) -> str:
        return self.line()

    def line(self, name: str = "WER") -> str:
        """As icefall prints it; "CER" for characters in the place of words."""
        counts = f"{self.ins} ins, {self.dels} del, {self.sub} sub"
        return f"%{name} {self.rate:.2%} [{self.errors} / {self.ref_words}, {counts} ]"


def as_characters(results: Iterable[Result]) -> list[Result]:
    """The same utterances, a character in the place of each word."""
    return [(utterance, _letters(ref), _letters(hyp)) for utterance, ref, hyp in results]


def _letters(words: Sequence[str]) -> list[str]:
    return [letter for letter in unicodedata.normalize("NFC", "".join(words)) if not letter.isspace()]


def score(results: Iterable[Result]) -> WerStats:
    """Count the errors of all utterances together."""
    counts, ref_words = Counter(), 0
    for _, ref, hyp in results:
        distance = kaldialign.edit_distance(list(ref), list(hyp))
        counts.update({kind: distance[kind] for kind in ("ins", "del", "sub")})
        ref_words += len(ref)
    return WerStats(counts["ins"], counts["del"], counts["sub"], ref_words)


def bootstrap_interval(
    results: Sequence[Result], level: float = 0.95, num_samples: int = 10000, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of the word error rate, by drawing utterances with replacement.

    Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", 2004; the ends are
    percentiles of the rates of the samples.

    Args:
      results: at least one utterance with reference words.
      level: coverage.
      num_samples: number of resampled test sets.
      seed: of the draws; the same seed gives the same interval.

    Returns:
      Lower and upper end, as fractions.
    """
    errors = np.array([kaldialign.edit_distance(list(ref), list(hyp))["total"] for _, ref, hyp in results])
    words = np.array([len(ref) for _, ref, _ in results])  # (utterances,), as `errors`
    assert words.sum() > 0, "no reference words"
    sums = resampled_sums(np.stack([errors, words], axis=1), num_samples, seed)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_sums(counts: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Sums over units (utterances, speakers) that are drawn with replacement.

    Args:
      counts: (units, C), the last column reference words.

    Returns:
      (num_samples, C) float64, without the samples that have no reference words.
    """
    random, size = np.random.default_rng(seed), len(counts)
    at_once = max(1, MOST_DRAWN // max(1, size))  # sets may be large
    parts = [min(at_once, num_samples - start) for start in range(0, num_samples, at_once)]
    drawn = (random.integers(size, size=(part, size)) for part in parts)  # the same numbers, however many at a time
    sums = np.concatenate([counts[draw].sum(axis=1, dtype=float) for draw in drawn])  # (num_samples, C)
    return sums[sums[:, -1] > 0]


def by_group(
    results: Iterable[Result], group_of: Callable[[Result], Group | None]
) -> dict[Group, tuple[int, WerStats]]:
    """Utterances and errors of each group, in the order of their first utterances; those of None are left out."""
    groups: defaultdict[Group, list[Result]] = defaultdict(list)
    for result in results:
        group = group_of(result)
        if group is not None:
            groups[group].append(result)
    return {group: (len(own), score(own)) for group, own in groups.items()}


def by_speaker(results: Iterable[Result], speakers: Mapping[str, str]) -> dict[str, tuple[int, WerStats]]:
    """Utterances and errors of each speaker, the worst first; utterances that no speaker is known of are left out."""
    rows = by_group(results, lambda result: speakers.get(result[0]))
    return dict(sorted(rows.items(), key=lambda item: (-item[1][1].rate, item[0])))


def write_speakers(path: str | Path, results: Iterable[Result], speakers: Mapping[str, str]) -> None:
    """Write a table of speakers, and the mean of their rates, in which each counts as one."""
    rows = by_speaker(results, speakers)
    table = text_table(
        ["speaker", "utterances", "words", "ins", "del", "sub", "WER"],
        [[name, n, s.ref_words, s.ins, s.dels, s.sub, f"{100 * s.rate:.2f}"] for name, (n, s) in rows.items()],
    )
    rates = [stats.rate for _, stats in rows.values() if stats.ref_words]
    mean = f"\nmean over {len(rates)} speakers: {100 * sum(rates) / len(rates):.2f}" if rates else ""
    with atomic_write(path) as temporary:
        temporary.write_text(f"{table}{mean}\n", encoding="utf-8")


def write_errs(path: str | Path, results: Iterable[Result], name: str = "WER") -> WerStats:
    """Write the error file: totals, alignments by utterance, error counts by word; return the totals.

    Args:
      name: of the rate; "CER" for characters (`as_characters`).
    """
    results = sorted(results, key=lambda result: result[0])
    stats = score(results)
    alignments = {utterance: aligned(ref, hyp) for utterance, ref, hyp in results}
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.write(f"{stats.line(name)}\n")
        out.write(
            f"Errors: {stats.ins} insertions, {stats.dels} deletions, {stats.sub} substitutions, "
            f"over {stats.ref_words} reference words ({stats.corr} correct)\n"
            "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, "
            "INSERTIONS:, PER-WORD STATS:\n\n"
            "PER-UTT DETAILS: corr or (ref->hyp)  \n"
        )
        for utterance, pairs in alignments.items():
            out.write(f"{utterance}:\t{' '.join(_merged(pairs))}\n")
        out.writelines(_by_word([pair for pairs in alignments.values() for pair in pairs]))
    return stats


def aligned(ref: Sequence[str], hyp: Sequence[str], sclite: bool = False) -> list[Pair]:
    """The alignment of least cost; with sclite's costs a substitution takes 4, an insertion or a deletion 3."""
    gap = "\0"
    while gap in ref or gap in hyp:
        gap += "\0"
    pairs = kaldialign.align(list(ref), list(hyp), gap, sclite_mode=sclite)
    return [(None if r == gap else r, None if h == gap else h) for r, h in pairs]


def _merged(pairs: Sequence[Pair]) -> list[str]:
    """An alignment as words and `(ref->hyp)`, neighbouring errors joined."""
    shown: list[str] = []
    refs: list[str] = []
    hyps: list[str] = []
    for ref, hyp in [*pairs, (None, None)]:
        if ref != hyp:
            refs += [ref] if ref is not None else []
            hyps += [hyp] if hyp is not None else []
            continue
        if refs or hyps:
            shown.append(f"({' '.join(refs) or GAP}->{' '.join(hyps) or GAP})")
            refs, hyps = [], []
        shown += [ref] if ref is not None else []
    return shown


def _by_word(pairs: Sequence[Pair]) -> Iterable[str]:
    """The sections of the error file that count over the whole test set."""
    times = Counter(pairs)
    ordered = sorted(times.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or ""))
    yield "\nSUBSTITUTIONS: count ref -> hyp\n"
    yield from (f"{n}   {ref} -> {hyp}\n" for (ref, hyp), n in ordered if ref != hyp and None not in (ref, hyp))
    yield "\nDELETIONS: count ref\n"
    yield from (f"{n}   {ref}\n" for (ref, hyp), n in ordered if hyp is None)
    yield "\nINSERTIONS: count hyp\n"
    yield from (f"{n}   {hyp}\n" for (ref, hyp), n in ordered if ref is None)
    yield "\nPER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp\n"
    words: defaultdict[str | None, Counter[str]] = defaultdict(Counter)
    for (ref, hyp), n in times.items():
        words[ref].update({"ref": n, "corr" if ref == hyp else "errs": n})
        words[hyp].update({"hyp": n} if ref == hyp else {"hyp": n, "errs": n})
    words.pop(None, None)
    for word, c in sorted(words.items(), key=lambda item: (-item[1]["errs"], item[0])):
        yield f"{word}   {c['corr']} {c['errs']} {c['ref']} {c['hyp']}\n"


def write_summary(path: str | Path, rates: Mapping[str, WerStats], name: str = "WER") -> None:
    """Write `settings<tab>WER`, best first, WER in percent.

    Args:
      path: wer-summary-<test set>-*.txt.
      rates: statistics by the name of the settings, e.g. "lm_scale_1.0".
    """
    rows = sorted(rates.items(), key=lambda item: (item[1].rate, item[0]))
    with atomic_write(path) as temporary:
        lines = [f"settings\t{name}\n", *(f"{key}\t{100 * stats.rate:.2f}\n" for key, stats in rows)]
        temporary.write_text("".join(lines), encoding="utf-8")
