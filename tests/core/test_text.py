"""What may reach a terminal, and what is escaped."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from lowbit_k2.core.text import JOINERS, printable


@given(st.text())
def test_nothing_unseen_is_left(text: str) -> None:
    shown = printable(text)
    assert all(c in JOINERS or c.isprintable() or unicodedata.category(c) in ("Zs", "Co") for c in shown)
    shown.encode("utf-8")
    if text.isprintable():
        assert shown == text


def test_examples() -> None:
    assert printable("Größe 今天 e\u0301") == "Größe 今天 e\u0301"
    assert printable("a\x1b]0;title\x07b\nc") == "a\\x1b]0;title\\x07b\\nc"
    assert printable("\u202etxt.exe") == "\\u202etxt.exe"
    assert printable("می\u200cخواهم\n") == "می\u200cخواهم\\n"
