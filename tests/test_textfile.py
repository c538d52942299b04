"""The one reader of text files: marks, encodings, line ends, archives, and what is no text."""

from __future__ import annotations

import ast
import gzip
import os
from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.textfile import numbered_lines, read_lines, read_text

PACKAGE = Path(__file__).resolve().parent.parent / "lowbit_k2"


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"\xef\xbb\xbfA B\nC\n", ["A B", "C"]),
        (b"A\n\xef\xbb\xbfB\n", ["A", "B"]),  # two files put together
        (b"A\r\nB\r\n", ["A", "B"]),
        (b"A\rB\r", ["A", "B"]),  # of an old Mac
        (b"A \rB\nC", ["A \rB", "C"]),
        ("A\u2028B\x0bC\x85D\n".encode(), ["A\u2028B\x0bC\x85D"]),
        ("E\u0301TE\u0301\n".encode(), ["\u00c9T\u00c9"]),
        (gzip.compress(b"A\nB\n", mtime=0), ["A", "B"]),
        (b"", []),
        (b"\n\nA\n", ["", "", "A"]),
    ],
)
def test_lines(tmp_path: Path, data: bytes, lines: list[str]) -> None:
    (tmp_path / "text").write_bytes(data)
    assert read_lines(tmp_path / "text") == lines
    assert list(numbered_lines(tmp_path / "text")) == [(n, s.strip()) for n, s in enumerate(lines, 1) if s.strip()]


def test_latin_1_where_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"caf\xe9\n")
    assert read_lines(path, legacy=True) == ["caf\u00e9"]
    path.write_bytes("caf\u00e9\n".encode())
    assert read_lines(path, legacy=True) == ["caf\u00e9"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"A\nB\xe9\n", "text line 2: byte 0xe9 is not UTF-8: convert it"),
        ("A\n".encode("utf-16"), "is UTF-16: convert it"),
        (b"A\nB\n\0\n", "text line 3: a NUL byte"),
        (gzip.compress(b"A\n" * 1000, mtime=0)[:20], "cannot be unpacked"),
    ],
)
def test_what_is_no_text(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "text").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_text(tmp_path / "text")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is no regular file"):
        read_text(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no regular file"):
        read_text(tmp_path)
    with pytest.raises(UserError, match="zero is no regular file"):
        read_text("/dev/zero")
    with pytest.raises(UserError, match="none does not exist: copy it"):
        read_text(tmp_path / "none", "copy it")


def test_nobody_else_reads_text() -> None:
    """Calls of `read_text` and `open` on paths, but for files that no user writes."""
    own = {"asr/training.py", "launch.py", "textfile.py", "fileio.py", "quant/allocation.py", "scoring/sclite.py"}
    own |= {"synthesis/corpus.py", "processes.py", "report/page.py"}
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "read_text":
                assert name in own, f"{name}:{node.lineno}: read it by lowbit_k2.textfile"
