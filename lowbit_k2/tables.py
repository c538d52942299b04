"""Tables of text, for terminals and for Markdown pages; what a file says in them never drives the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from lowbit_k2.core.text import printable


def text_table(headers: Sequence[object], rows: Sequence[Sequence[object]], left: Sequence[int] = (0,)) -> str:
    """Columns side by side, without rules; those numbered in `left` begin at the left, the others end at the right."""
    aligned = ["left" if i in left else "right" for i in range(len(headers))]
    cells = [[printable(str(cell)) for cell in row] for row in (headers, *rows)]
    table = tabulate(cells, tablefmt="plain", colalign=aligned, disable_numparse=True)
    return "\n".join(line.rstrip() for line in table.splitlines())


def markdown_table(headers: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table for a Markdown page."""
    lines = [headers, ["---"] * len(headers), *rows]  # not padded: a page's history then shows the rows that changed
    return "\n".join("| " + " | ".join(printable(str(cell)) for cell in line) + " |" for line in lines)
