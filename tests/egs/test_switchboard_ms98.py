"""ms98's marks and what becomes of them, transcripts, the dictionary's acronyms."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.egs.swbd_discs import local_module

ms98, discs = local_module("ms98"), local_module("discs")

TOKENS = {
    # words
    "yeah": "yeah",
    "Yeah": "yeah",
    "i'm": "i'm",
    "'cause": "'cause",
    "parents'": "parents'",
    "uh-huh": "uh-huh",
    "mother-in-law": "mother-in-law",
    "at&t": "a t and t",
    "AT&T's": "a t and t's",
    "a&amp;e": "a and e",
    "rock&roll": "rock and roll",
    "&": "",
    # parts of words
    "th[at]-": "th-",
    "th[at]": "th-",
    "-[wh]at": "-at",
    "[wh]at": "-at",
    "-[a]b[out]-": "-b-",
    "-[40]1k": "-1k",
    "ammu[n]it-": "ammu-it-",
    "th-": "th-",
    # laughing
    "[laughter-yeah]": "yeah",
    "[laughter-wh[at]-]": "wh-",
    "[laughter-wh[at]]-": "wh-",
    "[laughter-a_1]": "a",
    "[laughter-{yuppiedom}]": "yuppiedom",
    "[laughter-[it'n/isn't]]": "isn't",
    # said otherwise
    "[it'n/isn't]": "isn't",
    "[yeam/yeah]": "yeah",
    "[lem[guini]-/linguini]": "lem-",
    "[lem[guini]/linguini]-": "lem-",
    "ex[specially]-/especially]": "ex-",
    "it'n/isn't]": "isn't",
    # coined
    "{yuppiedom}": "yuppiedom",
    "{wolma[nized]-}": "wolma-",
    # variants
    "them_1": "them",
    "them_1's": "them's",
    "a_1": "a",
    "[a]_1": "a",
    "th_2[at]-": "th-",
    "y[ou]-_1": "y-",
    # letters
    "a.": "a",
    "i._b._m.": "i b m",
    "t._v.'s": "t v's",
    "t._v.s": "t v's",
    "a_b_c": "a b c",
    "a_b_c's": "a b c's",
    # noises, and marks that nobody knows
    "[noise]": "[noise]",
    "[laughter]": "[laughter]",
    "[vocalized-noise]": "[vocalized-noise]",
    "[LAUGHTER]": "[laughter]",
    "[skip]": "[noise]",
    # nothing
    "[silence]": "",
    "<b_aside>": "",
    "<e_aside>": "",
    "<b_aside>yes": "yes",
    "yes<E_Aside>": "yes",
    "-": "",
    "--": "",
    "...": "",
    # characters that no transcript should have
    "hello,": "hello",
    "either/or": "either or",
    "'": "",
}


@pytest.mark.parametrize("token", TOKENS)
def test_tokens(token: str) -> None:
    assert ms98.clean_token(token) == TOKENS[token]


ACRONYMS = {"ibm": ("i", "b", "m"), "tvs": ("t", "v's")}
LINE = "so [noise] th[at]- th[at]'s <b_aside> [laughter-IBM] tvs [laughter] <e_aside> -[kn]ow a_1 [silence]"


@pytest.mark.parametrize(
    ("noises", "partial", "acronyms", "text"),
    [
        (False, True, {}, "so th- th-'s ibm tvs -ow a"),
        (False, False, {}, "so th-'s ibm tvs a"),
        (True, False, ACRONYMS, "so [noise] th-'s i b m t v's [laughter] a"),
    ],
)
def test_texts(noises: bool, partial: bool, acronyms: dict, text: str) -> None:
    line = LINE.replace("th[at]'s", "th-'s")
    assert ms98.normalize(line, ms98.TextOptions(noises, partial, acronyms)) == text


def test_texts_that_are_not_ascii() -> None:
    assert ms98.normalize("caf\xe9 voices\u2014and it\u2019s", ms98.TextOptions()) == "cafe voices and it's"


def test_a_text_of_sounds_only_is_empty() -> None:
    assert ms98.normalize("[silence] [noise] --", ms98.TextOptions()) == ""
    assert ms98.normalize("[silence] [noise] --", ms98.TextOptions(noises=True)) == "[noise]"


@given(st.text("ab[]{}/-_<>'1. \xf8\u2014", max_size=30))
def test_any_text_becomes_plain_words(text: str) -> None:
    """Whatever the marks: known characters only, and cleaning again changes nothing but what looks like a mark."""
    for word in ms98.normalize(text, ms98.TextOptions()).split():
        assert set(word) <= set("ab'1-") and any(c in "ab1" for c in word)
        assert ms98.clean_token(word) == word


def test_transcripts_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = tmp_path / "sw2001A-ms98-a-trans.text"
    path.write_text(
        "sw2001A-ms98-a-0001 0.000000 0.977625 [silence]\n"
        "\n"
        "sw2001A-ms98-a-0002 0.977625 11.561375 hi um  yeah\n"
        "sw2001A-ms98-a-0003 11.56 nothing here\n"
        "sw2001A-ms98-a-0004 12.5 12.5 empty\n"
        "sw2001A-ms98-a-0005 -1 12.5 early\n"
        "sw2001A-ms98-a-0006 12 inf late\n"
        "sw2001A-ms98-a-0007 12 nan late\n"
        "sw2001A-ms98-a-0008\n"
        "<html>\n"
        "sw2001B-ms98-a-0009 13 14 the other side\n"
        "sw2001A-ms98-a-0010 14 15\n"
    )
    problems = discs.Problems()
    segments = ms98.read_transcript(path, "sw02001", "A", problems)
    assert [(s.name[-4:], s.start, s.end, s.text) for s in segments] == [
        ("0001", 0.0, 0.977625, "[silence]"),
        ("0002", 0.977625, 11.561375, "hi um  yeah"),
        ("0010", 14.0, 15.0, ""),
    ]
    assert {(s.conversation, s.side) for s in segments} == {("sw02001", "A")}
    assert problems.counts == {
        "lines of transcripts are no segments": 7,
        "lines belong to another side than their file": 1,
    }
    assert f"{path} line 4: " in problems.examples["lines of transcripts are no segments"]


names = st.sampled_from(["sw2001A-ms98-a-0001", "sw2001C-ms98-a-0001"]) | st.text(max_size=9)
numbers = st.floats().map(str) | st.integers(-9, 99).map(str) | st.text(max_size=5)


@given(st.tuples(names, numbers, numbers, st.text(max_size=20)), st.integers(1, 4))
def test_lines_of_any_kind(fields: tuple[str, ...], number: int) -> None:
    segment = ms98.parse_segment(list(fields[:number]))
    assert segment is None or 0 <= segment.start < segment.end


def phones(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def test_acronyms_are_found_by_their_phones() -> None:
    entries = [
        ("ibm", phones("ay b iy eh m")),
        ("ibm's", phones("ay b iy eh m z")),
        ("tvs", phones("t iy v iy z")),
        ("gas", phones("g ae s")),
        ("us", phones("ah s")),
        ("us", phones("y uw eh s")),
        ("us_1", phones("y uw eh s")),
        ("ok_1", phones("ow k ey")),
        ("be", phones("b iy")),
        ("a_1", phones("ey")),
        ("x's", phones("eh k s ax z")),
        ("uh-huh", phones("ah hh ah")),
        ("it's", phones("ih t s")),
        ("cds", phones("s iy d iy z")),
        ("ss", phones("eh s eh s")),
    ]
    assert ms98.find_acronyms(entries) == {
        "ibm": ("i", "b", "m"),
        "ibm's": ("i", "b", "m's"),
        "tvs": ("t", "v's"),
        "ok": ("o", "k"),
        "cds": ("c", "d's"),
        "ss": ("s", "s"),
    }


def test_letters_have_names() -> None:
    assert len(ms98.LETTERS) == 26 and ms98.LETTERS["w"] == phones("d ah b ax l y uw") and ms98.LETTERS["z"][-1] == "iy"


def test_the_dictionary_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sw-ms98-dict.text"
    path.write_text("# comment\n\nTHEM_1 EH M\n[laughter-yeah] y ae\nnophones\n")
    problems = discs.Problems()
    assert ms98.read_dictionary(path, problems) == [("them_1", phones("eh m")), ("[laughter-yeah]", phones("y ae"))]
    assert problems.counts == {"words of the dictionary have no phones": 1}
