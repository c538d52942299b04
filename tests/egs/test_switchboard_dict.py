"""The Switchboard recipe's lexicon from the ms98 dictionary, and Fisher's text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowbit_k2.graphs.lexicon import read_lexicon
from tests.egs.scripts import Run, call, refused
from tests.egs.swbd_discs import LOCAL


def phones(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SCRIPT, FISHER = LOCAL / "prepare_dict.py", LOCAL / "fisher_text.py"
DICTIONARY = """\
# a comment

A ax
a_1 ey
yeah y ae
[laughter-yeah] y ae
[yeam/yeah] y ae m
[fuzz/fizzle] f ah z
them dh eh m
them_1 eh m
{yuppiedom} y ah p iy d ax m
th[at]- dh
-[kn]ow ow
uh-huh ah hh ah
tvs t iy v iy z
ibm ay b iy eh m
at&amp;t ey t iy ae n t iy
[silence] sil
<b_aside> sil
[laughter] lau
hush hh ah sh sil
"""
LEXICON = {
    ("a", ("ax",)),
    ("a", ("ey",)),
    ("yeah", ("y", "ae")),
    ("fizzle", ("f", "ah", "z")),  # has no other pronunciation
    ("them", ("dh", "eh", "m")),
    ("them", ("eh", "m")),
    ("yuppiedom", phones("y ah p iy d ax m")),
    ("th-", ("dh",)),
    ("uh-huh", ("ah", "hh", "ah")),
    ("hush", ("hh", "ah", "sh")),
    ("v's", ("v", "iy", "z")),
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "ms98").mkdir()
    (tmp_path / "ms98/sw-ms98-dict.text").write_text(DICTIONARY)
    (tmp_path / "text").write_text("yeah th- i b m t v's\nyeah zyzzyva yeah zyzzyva quux\n")
    return tmp_path


def prepare(root: Path, *flags: str | Path) -> Run:
    where = ["--ms98-dir", root / "ms98", "--transcript", root / "text", "--dict-dir", root / "dict"]
    return call(SCRIPT, *where, *flags)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_lexicon_and_words(corpus: Path) -> None:
    run = prepare(corpus).good()
    entries = set(read_lexicon(corpus / "dict/lexicon.txt"))
    letters = {entry for entry in entries if len(entry[0]) == 1}
    assert entries - letters | {("a", ("ax",)), ("a", ("ey",))} == LEXICON
    assert len({word for word, _ in letters}) == 26 and ("w", phones("d ah b ax l y uw")) in letters
    assert lines(corpus / "dict/missing.txt") == ["zyzzyva 2", "quux 1"]
    words = {word for word, _ in entries}
    listed = lines(corpus / "dict/words.txt")
    assert listed == sorted(listed) and {"zyzzyva", "quux"} < set(listed) <= words | {"zyzzyva", "quux"}
    assert {"b", "th-"} <= set(listed), "of the text"
    assert {"c", "f"} <= words - set(listed), "the text has no c: its word pieces cannot write them"
    assert f"{len(words)} words, {len(entries)} pronunciations" in run.out and run.err == ""
    assert "the dictionary lacks 2 words of the training text (3 times, 25.00%), most often zyzzyva quux" in run.out


def test_noises_are_words_where_the_text_has_them(corpus: Path) -> None:
    with (corpus / "text").open("a") as file:
        file.write("yeah [laughter] [vocalized-noise]\n")
    prepare(corpus).good()
    entries = read_lexicon(corpus / "dict/lexicon.txt")
    assert ("[laughter]", ("lau",)) in entries and ("[vocalized-noise]", ("spn",)) in entries
    assert not [word for word, _ in entries if word == "[noise]"]


def test_whole_acronyms(corpus: Path) -> None:
    (corpus / "text").write_text("ibm tvs\n")
    run = prepare(corpus, "--whole-acronyms").good()
    entries = set(read_lexicon(corpus / "dict/lexicon.txt"))
    assert ("ibm", phones("ay b iy eh m")) in entries and {w for w, _ in entries if len(w) == 1} == {"a"}
    assert "lacks" not in run.out and lines(corpus / "dict/missing.txt") == []


def test_prepare_lang_takes_them(corpus: Path) -> None:
    prepare(corpus).good()
    flags = ("--lang-dir", corpus / "lang_phone", "--lexicon", corpus / "dict/lexicon.txt")
    call("lowbit_k2.recipe.prepare_lang", *flags).good()
    words = [line.split()[0] for line in lines(corpus / "lang_phone/words.txt")]
    assert {"them", "uh-huh", "th-", "v's", "i"} <= set(words) and "zyzzyva" not in words
    tokens = [line.split()[0] for line in lines(corpus / "lang_phone/tokens.txt")]
    assert tokens[0] == "<blk>" and "ax" in tokens and "sil" not in tokens


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("dictionary", "ms98 holds no sw-ms98-dict.text: get the ms98 archive whole, or give --dictionary"),
        ("folder", "no folder .*ms98"),
        ("text", "text has no words"),
        ("others", "has no word of .*text: give the dictionary that belongs to it"),
        ("no text", "text does not exist"),
    ],
)
def test_bad_input(corpus: Path, damage: str, words: str) -> None:
    if damage in ("dictionary", "folder"):
        (corpus / "ms98/sw-ms98-dict.text").unlink()
    if damage == "folder":
        (corpus / "ms98").rmdir()
    if damage == "no text":
        (corpus / "text").unlink()
    if damage in ("text", "others"):
        (corpus / "text").write_text("\n" if damage == "text" else "zyzzyva\n")
    flags = ("--ms98-dir", "TMP/ms98", "--transcript", "TMP/text", "--dict-dir", "TMP/dict")
    line = refused(corpus, SCRIPT, *flags)
    assert re.search(words, line), line


def test_lines_without_phones_are_counted(corpus: Path) -> None:
    with (corpus / "ms98/sw-ms98-dict.text").open("a") as file:
        file.write("nothing\n")
    assert "warning: 1 words of the dictionary have no phones, first" in prepare(corpus).good().err


# --- Fisher -----------------------------------------------------------------------------------------------------

TRANSCRIPT = """\
# fe_03_00004.sph
# Transcribed at the LDC

7.38 8.78 A: an- so the topic is [laugh]

8.99 9.30 B: (( i think ))
9.41 10.10 B: my t._v. and the ibm, you know. [mn]
10.10 11.10 B: [noise]
rubbish
"""


def test_fisher(corpus: Path) -> None:
    folder = corpus / "fisher/fe_03_p1_tran/data/trans/000"
    folder.mkdir(parents=True)
    (folder / "fe_03_00004.txt").write_text(TRANSCRIPT)
    (folder / "readme.txt").write_text("1.0 2.0 A: not this\n")
    output = corpus / "fisher.txt"
    run = call(FISHER, "--fisher-text", corpus / "fisher", "--output", output, "--ms98-dir", corpus / "ms98").good()
    assert lines(output) == ["an- so the topic is", "my t v and the i b m you know"]
    assert "2 sentences of 1 transcripts" in run.out
    assert "warning: 1 lines of Fisher's transcripts are not understood, first" in run.err
    flags = ("--noises", "true", "--partial-words", "false")
    call(FISHER, "--fisher-text", corpus / "fisher", "--output", output, *flags).good()
    assert lines(output) == ["so the topic is [laughter]", "my t v and the ibm you know [noise]", "[noise]"]


def test_no_fisher(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    flags = ("--output", "TMP/fisher.txt", "--fisher-text")
    assert "no fe_03_*.txt below" in refused(tmp_path, FISHER, *flags, "TMP/empty")
    assert "no folder" in refused(tmp_path, FISHER, *flags, "TMP/empty,TMP/none")
