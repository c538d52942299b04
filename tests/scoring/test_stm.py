"""STM: the lines of NIST's references, round trips, and lines that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit_k2.errors import UserError
from lowbit_k2.scoring.stm import StmSegment, parse_line, read_stm, read_stm_header, write_stm

HEADER = [
    ';; CATEGORY "0" "" ""',
    ';; LABEL "O" "Overall" "Complete Test Set"',
    ';; CATEGORY "1" "Corpus" ""',
    ';; LABEL "EN" "Callhome" "Callhome conversations"',
]
EN = ("O", "en", "F", "en-F")
LINES = {
    "en_4156 A en_4156_A 301.85 302.48 <O,en,F,en-F>  oh yeah": StmSegment(
        "en_4156", "A", "en_4156_A", 301.85, 302.48, EN, "oh yeah"
    ),
    "sw_4390 B\tsw_4390_B 0 10.6 <O,sw,M,sw-M> { i've / i have } (uh-huh)": StmSegment(
        "sw_4390", "B", "sw_4390_B", 0.0, 10.6, ("O", "sw", "M", "sw-M"), "{ i've / i have } (uh-huh)"
    ),
    "sw_4390 1 inter_segment_gap 0.000000 0.255000 <o,> ": StmSegment(
        "sw_4390", "1", "inter_segment_gap", 0.0, 0.255, ("o", ""), ""
    ),
    "a 1 s 1 2 <O> yes": StmSegment("a", "1", "s", 1.0, 2.0, ("O",), "yes"),
    "a 1 s 1 2 <B_ASIDE> yes": StmSegment("a", "1", "s", 1.0, 2.0, (), "<B_ASIDE> yes"),
    "a 1 s 1 2 no labels": StmSegment("a", "1", "s", 1.0, 2.0, (), "no labels"),
    "a 1 s 1 2": StmSegment("a", "1", "s", 1.0, 2.0, (), ""),
    "a 1 s 1 2 <O,en,F,en-F> IGNORE_TIME_SEGMENT_IN_SCORING": StmSegment(
        "a", "1", "s", 1.0, 2.0, EN, "IGNORE_TIME_SEGMENT_IN_SCORING"
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_lines(line: str) -> None:
    assert parse_line(line, "here") == LINES[line]


def test_what_is_not_scored() -> None:
    assert [segment.is_ignored for segment in LINES.values()] == [False, False, True, *[False] * 4, True]


def test_files_keep_their_header(tmp_path: Path) -> None:
    path = tmp_path / "a.stm"
    path.write_text("\n".join([*HEADER, "", *LINES, ";; LABEL too late"]) + "\n")
    assert read_stm(path) == list(LINES.values()) and read_stm_header(path) == HEADER
    write_stm(tmp_path / "b.stm", read_stm(path), read_stm_header(path))
    assert read_stm(tmp_path / "b.stm") == read_stm(path) and read_stm_header(tmp_path / "b.stm") == HEADER
    first = (tmp_path / "b.stm").read_text().splitlines()[len(HEADER)]
    assert first == "en_4156 A en_4156_A 301.85 302.48 <O,en,F,en-F> oh yeah"


def test_latin_1_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.stm"
    path.write_bytes(b"a 1 s 1 2 caf\xe9\n")
    assert read_stm(path)[0].text == "café"
    path.write_bytes(b"\xef\xbb\xbfa 1 s 1 2 caf\xc3\xa9\n")
    assert read_stm(path)[0].recording == "a" and read_stm(path)[0].text == "café"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a 1 s 1\n", "a.stm line 1: expected 'recording channel speaker start end"),
        (";; c\n\na 1 s one 2 yes\n", "a.stm line 3: 'one' and '2' are no times"),
        ("a 1 s 2 1 yes\n", "line 1: a segment cannot run from 2 to 1 s"),
        ("a 1 s -1 1 yes\n", "line 1: a segment cannot run from -1 to 1 s"),
        ("a 1 s nan 1 yes\n", "line 1: a segment cannot run from nan to 1 s"),
        ("a 1 s 0 inf yes\n", "line 1: a segment cannot run from 0 to inf s"),
        (";; only a comment\n", "a.stm holds no segments"),
        ("", "a.stm holds no segments"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.stm").write_text(text)
    with pytest.raises(UserError, match=words):
        read_stm(tmp_path / "a.stm")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.stm does not exist"):
        read_stm(tmp_path / "none.stm")


names = st.text("abcsw_0123456789", min_size=1, max_size=8)
times = st.integers(0, 10**9).map(lambda micro: micro / 1e6)


@given(names, st.sampled_from("AB12"), names, times, times, st.lists(names, max_size=4), st.lists(names, max_size=5))
def test_round_trip(recording: str, channel: str, speaker: str, a: float, b: float, labels: list, text: list) -> None:
    labels = labels if len(labels) != 1 else ["O"]  # a single label is known by its name only
    segment = StmSegment(recording, channel, speaker, min(a, b), max(a, b), tuple(labels), " ".join(text))
    assert parse_line(segment.line(), "here") == segment


@given(st.text(max_size=80))
def test_garbage_never_crashes(line: str) -> None:
    try:
        assert isinstance(parse_line(line.strip(), "here"), StmSegment)
    except UserError as error:
        assert str(error).startswith("here: ")
