"""The one error of packed files."""

from __future__ import annotations

MAX_TEXT = 500


class PackedFileError(ValueError):
    """A packed file, or what should go into one, is not as the format wants it.

    Its text is a single printable line, although it may quote what a damaged or hostile file holds.
    """

    one_line = True  # scripts print it without a traceback

    def __init__(self, text: str) -> None:
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        super().__init__(line if len(line) <= MAX_TEXT else line[:MAX_TEXT] + " ...")
