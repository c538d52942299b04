"""Tables of text, for terminals and for Markdown pages; what a file says in them never drives the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lowbit_k2.core.text import printable
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.textfile import read_text


def text_table(headers: Sequence[object], rows: Sequence[Sequence[object]], left: Sequence[int] = (0,)) -> str:
    """Columns side by side, without rules; those numbered in `left` begin at the left, the others end at the right."""
    cells = [[printable(str(cell)).strip() for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(
            c.ljust(width) if i in left else c.rjust(width)
            for i, (c, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(headers: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table for a Markdown page."""
    lines = [headers, ["---"] * len(headers), *rows]  # not padded: a page's history then shows the rows that changed
    return "\n".join("| " + " | ".join(printable(str(cell)) for cell in line) + " |" for line in lines)


def fill_sections(page: str, sections: Mapping[str, str]) -> str:
    """A page with other text between the comments `<!-- NAME -->` and `<!-- end of NAME -->` of each section.

    Raises:
      UserError: a section that the page does not have, or has twice.
    """
    for name, text in sections.items():
        first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        if page.count(first) != 1 or page.count(last) != 1 or page.index(first) > page.index(last):
            raise UserError(f"the page needs one section between {first.strip()} and {last.strip()}")
        page = page[: page.index(first) + len(first)] + text.strip() + "\n" + page[page.index(last) :]
    return page


def fill_page(page: Path, sections: Mapping[str, str], command: str, check: bool = False) -> bool:
    """Put the sections into a page, if it has others; whether it had.

    Args:
      command: that does so, for who reads the error.

    Raises:
      UserError: `check`, and it has; or it lacks a section.
    """
    text = read_text(page)
    filled = fill_sections(text, sections)
    if filled == text:
        return False
    if check:
        raise UserError(f"{page} has other tables than its result files: run {command}")
    with atomic_write(page) as temporary:
        temporary.write_text(filled, encoding="utf-8")
    return True
