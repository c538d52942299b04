"""How a system fails, beside how often: runs of deleted words, and error rates by length of utterance and by noise.

Models of few bits that are too weak delete whole phrases, which a deletion rate does not tell from as many single
words that were missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lowbit_k2.errors import UserError
from lowbit_k2.scoring.wer import Result, WerStats, aligned, bootstrap_interval, by_group, score
from lowbit_k2.tables import text_table

RUNS = (3, 5, 11)  # deleted words in a row, and more
LENGTHS = (0, 1, 6, 11, 21, 41)  # reference words with which a group of utterances begins
MOST_SNRS = 8  # different ones that are groups of their own; of more, each stretch of SNR_STEP is one
SNR_STEP = 5  # dB
Groups = dict[str, tuple[int, WerStats]]  # by label: utterances, errors


def deletion_runs(results: Iterable[Result]) -> list[int]:
    """Length of every run of deleted reference words in a row, on the alignments that errs-*.txt shows."""
    return [
        sum(1 for _ in run)
        for _, ref, hyp in results
        for deleted, run in groupby(aligned(ref, hyp), key=lambda pair: pair[1] is None)
        if deleted
    ]


def count_runs(runs: Iterable[int]) -> dict[int, int]:
    """How many of the runs have at least so many words, for each of `RUNS`."""
    runs = list(runs)
    return {least: sum(run >= least for run in runs) for least in RUNS}


def format_runs(counts: Mapping[int, int]) -> str:
    """`3/1/0`, as a cell of a table."""
    return "/".join(map(str, counts.values()))


def by_length(results: Iterable[Result]) -> Groups:
    """By the number of reference words, groups without utterances left out."""
    found = by_group(results, lambda result: max(start for start in LENGTHS if start <= len(result[1])))
    ends = {start: end - 1 for start, end in zip(LENGTHS, LENGTHS[1:], strict=False)}
    return {_span(start, ends.get(start)): found[start] for start in sorted(found)}


def _span(start: int, end: int | None) -> str:
    if end is None:
        return f"{start}+"
    return str(start) if start == end else f"{start}-{end}"


def by_snr(results: Iterable[Result], snrs: Mapping[str, float]) -> Groups:
    """By the ratio of speech to noise in dB, the loudest noise first; utterances without one are "clean"."""
    steps = len(set(snrs.values())) > MOST_SNRS

    def group_of(result: Result) -> float:
        snr = snrs.get(result[0], math.inf)
        return SNR_STEP * math.floor(snr / SNR_STEP) if steps and math.isfinite(snr) else snr

    found = by_group(results, group_of)
    return {_decibels(snr, steps): found[snr] for snr in sorted(found)}


def _decibels(snr: float, steps: bool) -> str:
    if math.isinf(snr):
        return "clean"
    return f"{snr:g} to {snr + SNR_STEP:g} dB" if steps else f"{snr:g} dB"


@dataclass(frozen=True)
class Detail:
    """One system on one test set.

    Attributes:
      interval: 95%, of the word error rate, as fractions; None without reference words.
      runs: how many runs of at least so many deleted words.
      longest: run of deleted words.
      lengths: by the number of reference words.
      snrs: by noise; empty where none is known.
    """

    utterances: int
    stats: WerStats
    interval: tuple[float, float] | None
    runs: dict[int, int]
    longest: int
    lengths: Groups
    snrs: Groups

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        groups = {name: {label: _as_dict(*group) for label, group in found.items()} for name, found in self._groups()}
        return {
            **_as_dict(self.utterances, self.stats),
            "interval": self.interval,
            "deletion_runs": {str(least): count for least, count in self.runs.items()},
            "longest_deletion_run": self.longest,
            **groups,
        }

    def _groups(self) -> tuple[tuple[str, Groups], ...]:
        return ("by_length", self.lengths), ("by_snr", self.snrs)


def _as_dict(utterances: int, stats: WerStats) -> dict[str, Any]:
    return {"utterances": utterances, **asdict(stats), "rate": stats.rate if math.isfinite(stats.rate) else None}


def detail(results: Sequence[Result], snrs: Mapping[str, float] | None = None) -> Detail:
    """All of it.

    Args:
      results: of a test set.
      snrs: dB by utterance.
    """
    stats, runs = score(results), deletion_runs(results)
    return Detail(
        utterances=len(results),
        stats=stats,
        interval=bootstrap_interval(results) if stats.ref_words else None,
        runs=count_runs(runs),
        longest=max(runs, default=0),
        lengths=by_length(results),
        snrs={} if snrs is None else by_snr(results, snrs),
    )


def check_snrs(snrs: Mapping[str, float], systems: Iterable[tuple[Path, Sequence[Result]]]) -> None:
    """Whether the cuts are those of the systems.

    Raises:
      UserError: no cut has an SNR, or no utterance of a system has one.
    """
    if not snrs:
        raise UserError("the cuts carry no SNR: give those of add_noise, or leave --cuts out")
    for path, results in systems:
        if not any(utterance in snrs for utterance, _, _ in results):
            raise UserError(f"{path}: the cuts have none of its utterances: give the cuts of this test set")


def format_details(systems: Mapping[str, Detail]) -> str:
    """Tables for a terminal: errors, WER by reference words and by SNR; a row for each system."""
    head = ["system", "utterances", "words", "WER", "95%", "ins", "del", "sub"]
    head += [f"runs of {least}+" for least in RUNS] + ["longest"]
    rows = []
    for name, d in systems.items():
        ends = "" if d.interval is None else "-".join(f"{100 * end:.2f}" for end in d.interval)
        s = d.stats
        counts = [s.ins, s.dels, s.sub, *d.runs.values(), d.longest]
        rows.append([name, d.utterances, s.ref_words, f"{100 * s.rate:.2f}", ends, *counts])
    parts = [f"{text_table(head, rows)}\nruns: of so many deleted words in a row, and more"]
    for title, groups in (
        ("WER by words of the reference", {name: d.lengths for name, d in systems.items()}),
        ("WER by SNR", {name: d.snrs for name, d in systems.items()}),
    ):
        if any(groups.values()):
            parts.append(f"{title}, in brackets the words\n{text_table(*group_rows(groups))}")
    return "\n\n".join(parts)


def group_rows(systems: Mapping[str, Groups]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row for each system, a column for each group that any has, in the order of the first's."""
    labels = list(dict.fromkeys(label for groups in systems.values() for label in groups))
    rows = [[name, *(_cell(groups.get(label)) for label in labels)] for name, groups in systems.items()]
    return ["system", *labels], rows


def _cell(group: tuple[int, WerStats] | None) -> str:
    if group is None:
        return "-"
    _, stats = group
    return f"{100 * stats.rate:.2f} ({stats.ref_words})"
