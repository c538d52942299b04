"""icefall's file of results: what is written is read, what is not a result is refused by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.scoring.recogs import read_hypotheses, read_recogs, write_recogs


def test_recogs(tmp_path: Path) -> None:
    path = tmp_path / "recogs-eval2000.txt"
    write_recogs(path, [("u2", ["a"], ["don't", "it's", 'say "x"', "é"]), ("u1", ["b"], [])])
    assert read_hypotheses(path) == {"u1": [], "u2": ["don't", "it's", 'say "x"', "é"]}
    assert read_recogs(path) == [("u1", ["b"], []), ("u2", ["a"], ["don't", "it's", 'say "x"', "é"])]


@pytest.mark.parametrize(
    "text",
    ["u1:\tref=['a']\nu1:\thyp=['a'\n", "u1: a b c\n", "u1:\thyp=[1, 2]\n", "u1:\thyp=[a]\n", "\x00\xff\n", "\n"],
)
def test_recogs_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recogs-bad.txt"
    path.write_text(text)
    with pytest.raises(UserError, match="recogs-bad.txt line [12]: (expected|a NUL byte)"):
        read_recogs(path)


def test_recogs_without_hypotheses(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="empty.txt holds no hypotheses"):
        read_recogs(tmp_path / "empty.txt")
    with pytest.raises(UserError, match="none.txt does not exist"):
        read_recogs(tmp_path / "none.txt")


def test_what_is_incomplete_or_double_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recogs-x.txt"
    path.write_text("u1:\tref=['a']\nu1:\thyp=['a']\nu1:\thyp=['b']\n")
    with pytest.raises(UserError, match="recogs-x.txt line 3: u1 has a second hyp"):
        read_recogs(path)
    path.write_text("u1:\thyp=['a']\n")
    with pytest.raises(UserError, match="recogs-x.txt: u1 has no ref"):
        read_recogs(path)
