"""The one error of packed files."""

from __future__ import annotations


class PackedFileError(ValueError):
    """A packed file, or what should go into one, is not as the format wants it. Its text is a single line."""

    one_line = True  # scripts print it without a traceback
