"""Text of files and models: what may reach a terminal, and what is no text of a transcript."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # parts of words in some scripts
UNSEEN = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}  # control, format (bidirectional overrides too), surrogates, line ends


def printable(text: str) -> str:
    """The text with everything escaped that drives a terminal, reorders a line or ends it."""
    if text.isprintable():
        return text
    return "".join(
        c if c in JOINERS or unicodedata.category(c) not in UNSEEN else c.encode("unicode_escape").decode()
        for c in text.encode("utf-8", "backslashreplace").decode("utf-8")
    )


def is_special(piece: str) -> bool:
    """True for `<blk>`, `<unk>`, `<sos/eos>` and their like."""
    return len(piece) > 2 and piece.startswith("<") and piece.endswith(">")
