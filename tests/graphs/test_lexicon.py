"""Lexicons as text: disambiguation by its definition, symbol tables, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit_k2.errors import UserError
from lowbit_k2.graphs.lexicon import add_disambig, lexicon_arcs, read_lexicon, read_symbols, write_symbols

entries_of = st.lists(
    st.tuples(st.sampled_from("xyz"), st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(tuple)), max_size=9
)


@given(entries_of)
def test_disambiguated_pronunciations_are_unique_and_prefix_free(entries: list) -> None:
    marked, last = add_disambig(entries)
    pronunciations = [p for _, p in marked]
    assert len(set(pronunciations)) == len(pronunciations)
    for p in pronunciations:
        assert not any(q[: len(p)] == p for q in pronunciations if q != p)
    used = {int(t[1:]) for p in pronunciations for t in p if t.startswith("#")}
    assert used == set(range(1, last + 1))
    assert [(w, tuple(t for t in p if not t.startswith("#"))) for w, p in marked] == entries


def test_only_what_needs_a_mark_gets_one() -> None:
    marked, _ = add_disambig([("A", ("x",)), ("AT", ("x", "t")), ("EH", ("x",)), ("TO", ("t", "u"))])
    assert [p for _, p in marked] == [("x", "#1"), ("x", "t"), ("x", "#2"), ("t", "u")]


def test_arcs_spell_the_words() -> None:
    tokens, words = {"x": 1, "t": 2, "#0": 3}, {"A": 1, "AT": 2, "#0": 3}
    arcs, final = lexicon_arcs([("A", ("x",)), ("AT", ("x", "t"))], tokens, words, disambig_loop=True)
    assert final == 2
    assert sorted(arcs) == [(0, 0, 1, 1, 0.0), (0, 0, 3, 3, 0.0), (0, 1, 1, 2, 0.0), (1, 0, 2, 0, 0.0)]


def test_variant_marks_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("READ R IY D\nREAD(2) R EH D\nREAD(3) R EH D\n\n(2) T UW\n")
    assert read_lexicon(path) == [("READ", ("R", "IY", "D")), ("READ", ("R", "EH", "D")), ("(2)", ("T", "UW"))]


def test_symbol_tables_come_back(tmp_path: Path) -> None:
    write_symbols(tmp_path / "words.txt", {"b": 1, "<eps>": 0})
    assert (tmp_path / "words.txt").read_text() == "<eps> 0\nb 1\n"
    assert read_symbols(tmp_path / "words.txt") == {"<eps>": 0, "b": 1}


@pytest.mark.parametrize("text, reason", [("a\n", "expected"), ("a 1\na 2\n", "twice"), ("a 1\nb 1\n", "two symbols")])
def test_bad_symbol_tables(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_symbols(tmp_path / "words.txt")


def test_bad_lexicons(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    with pytest.raises(UserError, match="does not exist"):
        read_lexicon(path)
    path.write_text("A\n")
    with pytest.raises(UserError, match="no pronunciation"):
        read_lexicon(path)
    path.write_bytes(b"A x\nB \xff\n")
    with pytest.raises(UserError, match="lexicon.txt line 2: byte 0xff is not UTF-8"):
        read_lexicon(path)


def test_comments_of_a_dictionary(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("\ufeff;;; # version 1\nYES Y EH S\nMA1 1 M A\nGO G OW # a game\nGO(2) G AO#\n\n# all of it\n")
    expected = [("YES", ("Y", "EH", "S")), ("MA1", ("1", "M", "A")), ("GO", ("G", "OW")), ("GO", ("G", "AO#"))]
    assert read_lexicon(path) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("GO # silent", "line 2: word GO has no pronunciation"),
        ("GO #1 OW", "line 2: '#1' can be no token of GO"),
        ("GO <eps>", "line 2: '<eps>' can be no token of GO"),
        ("GO <blk> G", "line 2: '<blk>' can be no token of GO"),
        ("GO 0.75 G OW", "line 2: 0.75 behind GO looks like a probability"),
        ("GO 1.0 G OW", "line 2: 1.0 behind GO looks like a probability"),
        ("GO G\x1b[31m OW", "line 2: .* can be no token of GO"),
    ],
)
def test_odd_columns_are_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "dict.txt").write_text(f"YES Y EH S\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_lexicon(tmp_path / "dict.txt")
