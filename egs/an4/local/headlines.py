"""The README's table and picture, out of the same result files as RESULTS.md; `rows.py results` calls it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from result_files import result_path
from systems import COLUMNS, FAMILIES, ROWS, Row
from tables import COMMAND

from lowbit_k2.asr.evaluation import Evaluation
from lowbit_k2.fileio import read_json
from lowbit_k2.report.figures import COLOURS, NAMES, colour_of, megabytes, new_figure
from lowbit_k2.tables import fill_page, markdown_table

SECTION = "an4"  # of README.md
HEADLINES = (  # system, bits: of every family float, the smallest, and what is near either
    ("float", "32"),
    ("naive1", "1"),
    ("cotrain-kl-sp", "1"),
    ("cotrain-plain", "1"),
    ("hand16", "1"),
    ("tdnnf-float", "32"),
    ("tdnnf-more", "32"),
    ("tdnnf-qat4", "4"),
    ("tdnnf-qat2", "2"),
    ("tdnnf-qat1", "1"),
    ("rnnt-float", "32"),
    ("rnnt-cotrain-plain", "1"),
    ("lstm-float", "32"),
    ("lstm-more", "32"),
    ("lstm-gq5", "5"),
    ("lstm-cotrain", "2"),
    ("lstm-cotrain", "1"),
)


class Point(NamedTuple):
    """One model on the test set, by its family's search."""

    row: Row
    evaluation: Evaluation

    @property
    def method(self) -> str:
        return FAMILIES[self.row.system.methods][2]

    @property
    def errors(self) -> int:
        stats = self.evaluation.stats(self.method)
        return stats.ins + stats.dels + stats.sub

    @property
    def wer(self) -> float:
        return 100 * self.evaluation.stats(self.method).rate

    @property
    def megabytes(self) -> float:
        return self.evaluation.file_bytes / 1e6


def write_headlines(page: Path, picture: Path, check: bool) -> None:
    """The README's table, and the picture beside it where the table was another.

    Raises:
      UserError: `check`, and the page has another table.
    """
    found = headlines()
    if fill_page(page, {SECTION: headline_table(found)}, COMMAND, check):
        draw(found, picture)


def headlines() -> list[list[Point]]:
    """The seeds that have results of each of HEADLINES."""
    return [own for name, bits in HEADLINES if (own := list(_points(name, bits)))]


def _points(name: str, bits: str) -> Iterator[Point]:
    for row in ROWS:
        path = result_path(row)
        if row.system.name == name and path.is_file():
            found = [Evaluation(**values) for values in read_json(path)["evaluations"]]
            yield from (Point(row, e) for e in found if e.precision == bits)


def headline_table(found: list[list[Point]]) -> str:
    """Markdown: the errors of a system's seeds in one cell."""
    lines = []
    for own in found:
        system, bits = own[0].row.system, own[0].evaluation.precision
        family, _, method = FAMILIES[system.methods]
        errors = ", ".join(str(p.errors) for p in own)
        rate = sum(p.wer for p in own) / len(own)
        size = [f"{own[0].megabytes:.2f}", f"{own[0].evaluation.ratio:.1f}x"]
        lines.append([family, system.label, bits, *size, errors, f"{rate:.1f}", COLUMNS[method]])
    head = ["model", "training", "bits", "MB", "smaller", "errors, by seed", "mean %WER", "search"]
    return markdown_table(head, lines)


def draw(found: list[list[Point]], path: Path) -> None:
    """%WER against MB on disk, a point for each seed; lines: 95% of a bootstrap over utterances."""
    figure, axes = new_figure(7.2, 3.9)
    shown, kinds = list(chain(*found)), set()
    for methods, (family, marker, _) in FAMILIES.items():
        for p in (p for p in shown if p.row.system.methods == methods):
            kind = colour_of(p.evaluation.precision)
            low, high = (100 * end for end in p.evaluation.intervals[p.method])
            style = {"color": COLOURS[kind], "alpha": 0.8}
            axes.errorbar([p.megabytes], [p.wer], [[p.wer - low], [high - p.wer]], fmt="none", linewidth=0.6, **style)
            axes.plot([p.megabytes], [p.wer], marker, markersize=5, **style)
            kinds.add(kind)
        axes.plot([], [], marker, color=COLOURS["muted"], label=family)
    for kind in (kind for kind in NAMES if kind in kinds):
        axes.plot([], [], "_", markersize=9, markeredgewidth=3, color=COLOURS[kind], label=NAMES[kind])
    megabytes(axes, [p.megabytes for p in shown])
    axes.set_ylim(0, None)
    axes.set_ylabel("%WER, AN4 test")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
