"""Does a model of few bits break sooner? Error rates of noisy copies of a test set, by condition and precision."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lowbit_k2.errors import UserError
from lowbit_k2.report.experiments import Score
from lowbit_k2.report.text import p_value, reference_of
from lowbit_k2.scoring.detail import format_runs
from lowbit_k2.tables import markdown_table

CLEAN = "clean"
MARKS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
NOTE = "* p < 0.05, ** 0.01, *** 0.001 by MAPSSWE against float under the same condition; + where it is better"
SNR = re.compile(r"snr(-?\d+(?:\.\d+)?)")
CONDITION = re.compile(r"(room|mulaw|snr-?\d+(\.\d+)?)(\+(room|mulaw|snr-?\d+(\.\d+)?))*")  # of data/noisy.py


@dataclass(frozen=True)
class NoiseCell:
    """A system under a condition.

    Attributes:
      rate: word errors over reference words.
      errors: of which MAPSSWE tells whether they are others than float's under the same condition: `p`.
      lost: rate over the system's own on the clean set.
      runs: of deleted words, how many of at least so many, where what was recognised was kept.
    """

    condition: str
    snr: float | None
    system: str
    precision: str
    rate: float
    errors: int
    p: float | None
    worse: bool
    lost: float | None
    runs: dict[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """`12.68 **`; stars where it is worse than float, plus signs where it is better."""
        return marked(self.rate, self.p, self.worse)


def marked(rate: float, p: float | None, worse: bool) -> str:
    """A rate in percent and its marks, as NOTE has them."""
    marks = next((mark for limit, mark in MARKS if p is not None and p < limit), "")
    return f"{100 * rate:.2f} {marks if worse else marks.replace('*', '+')}".strip()


def condition_of(test_set: str, clean: str) -> str | None:
    """`test-snr10` of `test` is `snr10`, and `test` itself "clean"; None for other test sets, as `test-other`."""
    if test_set == clean:
        return CLEAN
    condition = test_set.removeprefix(f"{clean}-")
    return condition if condition != test_set and CONDITION.fullmatch(condition) else None


def noise_cells(scores: Sequence[Score], clean: str, method: str) -> list[NoiseCell]:
    """Systems under all conditions, the clean set first, then by falling SNR, then others by name.

    Systems that were decoded on no noisy copy are left out.

    Raises:
      UserError: no such results, or none of a noisy copy.
    """
    own = [s for s in scores if s.method == method and condition_of(s.test_set, clean) is not None]
    if not own:
        known = ", ".join(sorted({f"{s.test_set} by {s.method}" for s in scores})) or "nothing"
        raise UserError(f"there are no results of {clean} by {method}, only {known}")
    if all(s.test_set == clean for s in own):
        raise UserError(f"there are no results of noisy copies of {clean}: make some with add_noise, and decode them")
    at_clean = {s.label: s.stats.rate for s in own if s.test_set == clean}
    in_noise = {s.label for s in own if s.test_set != clean}
    cells = []
    for s in (s for s in own if s.label in in_noise):
        condition = condition_of(s.test_set, clean)
        match = SNR.fullmatch(condition)
        reference = reference_of(s, own)
        compared = reference is not None and reference is not s
        cells.append(
            NoiseCell(
                condition,
                float(match[1]) if match else None,
                " ".join(part for part in (s.system, s.setting) if part),
                s.precision,
                s.stats.rate,
                s.stats.errors,
                p_value(s, reference) if compared else None,
                compared and s.stats.rate > reference.stats.rate,
                s.stats.rate / at_clean[s.label] if at_clean.get(s.label) else None,
                s.runs(),
            )
        )
    return sorted(cells, key=lambda c: (c.condition != CLEAN, c.snr is None, -(c.snr or 0), c.condition))


def noise_rows(
    cells: Sequence[NoiseCell], shown: Callable[[NoiseCell], str] = str
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: a row for each system and precision, a column for each condition.

    Args:
      shown: what is in a cell of the table.
    """
    conditions = {c.condition: c.condition if c.snr is None else f"{c.snr:g} dB" for c in cells}
    rows = []
    for system, precision in dict.fromkeys((c.system, c.precision) for c in cells):
        found = {c.condition: c for c in cells if (c.system, c.precision) == (system, precision)}
        rows.append([system, precision, *(shown(found[name]) if name in found else "-" for name in conditions)])
    return ["system", "bits", *conditions.values()], rows


def runs_of(cell: NoiseCell) -> str:
    """`3/1/0` runs of so many deleted words and more."""
    return "-" if cell.runs is None else format_runs(cell.runs)


def format_noise(cells: Sequence[NoiseCell]) -> str:
    """Markdown."""
    return f"%WER\n\n{markdown_table(*noise_rows(cells))}\n\n{NOTE}"
