"""Global mapping files: rules, what they do to texts, agreement with NIST's csrfilt.sh, and files that are none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.scoring.ctm import CtmWord, share_out
from lowbit_k2.scoring.glm import MAX_WORD, GlobalMap, Rule, filter_hypothesis, filter_reference, read_glm
from lowbit_k2.scoring.sclite import find_sclite
from lowbit_k2.scoring.stm import StmSegment
from tests.scoring.calls import MINI_GLM, make_calls, needs_sctk

HEAD = ";; rules for a test\n* name 'test'\n* format = 'NIST1'\n* case_sensitive = 'F'\n"


def write_glm(folder: Path, *rules: str, head: str = HEAD) -> Path:
    path = folder / "test.glm"
    path.write_text(head + "".join(f"{rule}\n" for rule in rules))
    return path


def only_rule(folder: Path, line: str) -> Rule:
    (rule,) = read_glm(write_glm(folder, line), "ref").rules
    return rule


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("UH => %HESITATION / [ ] __ [ ] ;; a comment", Rule("UH", "%HESITATION", " ", " ")),
        ("[UH HUH ]=> [YES ]", Rule("UH HUH ", "YES ")),
        ('"UH" => "OH"   / [a ] __', Rule("UH", "OH", "a ", "")),
        ("T. => TEE / __ [ SHIRT]", Rule("T.", "TEE", "", " SHIRT")),
        ("[SHE'S] => [{SHE IS / SHE HAS}] / [ ] __ [ ]", Rule("SHE'S", "{SHE IS / SHE HAS}", " ", " ")),
        ("OOPS => / [ ] __ [ ]", Rule("OOPS", "", " ", " ")),
        ("OOPS => [] / [ ] __ [ ]", Rule("OOPS", "", " ", " ")),
        ("AIR BAG => AIRBAG", Rule("AIR BAG", "AIRBAG")),
        ("A => {B / C}", Rule("A", "{B")),  # NIST's reader takes the last slash for the context
    ],
)
def test_rules(tmp_path: Path, line: str, rule: Rule) -> None:
    assert only_rule(tmp_path, line) == rule


def test_parts_for_reference_or_hypothesis(tmp_path: Path) -> None:
    parts = ["a => b", ';; INPUT_DEPENDENT_APPLICATION = "hyp"', "c => d", ';;  INPUT_DEPENDENT_APPLICATION="stm|x"']
    path = write_glm(tmp_path, *parts, "e => f", ';; INPUT_DEPENDENT_APPLICATION = "ref|hyp"', "g => h")
    assert [rule.source for rule in read_glm(path, "ref").rules] == ["a", "e", "g"]
    assert [rule.source for rule in read_glm(path, "hyp").rules] == ["a", "c", "g"]


def test_rules_fire_in_order_on_the_text_as_it_was() -> None:
    rules = [
        Rule("AB", "x", " ", " "),
        Rule("A", "y"),
        Rule("AB", "z"),
        Rule("C", "AB", " ", " "),
        Rule("D", "", "AB "),
    ]
    glm = GlobalMap(tuple(rules))
    assert glm.apply(" AB AB ") == " x x "  # the blank between them is the context of both
    assert glm.apply(" ABA ") == " yBy "  # the first rule that fits, not the longest
    assert glm.apply(" C D AB D ") == " AB D x  "  # contexts are those of the input
    assert GlobalMap((Rule("A", "y"),), copy_no_hit=False).apply("ABA") == "yy"


def test_case(tmp_path: Path) -> None:
    assert read_glm(write_glm(tmp_path, "colour => color"), "ref").filter_text("Colours") == "colorS"
    sensitive = read_glm(write_glm(tmp_path, "colour => color", "THE => A", head=";;\n"), "ref")
    assert sensitive.filter_text("the colour") == "A COLOUR"  # texts are in upper case by then


@pytest.mark.parametrize(
    ("text", "filtered"),
    [
        ("uh (uh) gonna", "%HESITATION (%HESITATION) GOING TO"),
        ("she's a well-known th- -ing (th-)", "{SHE IS / SHE HAS} A WELL KNOWN TH- -ING (TH-)"),
        ("one-two-three four--five", "ONE TWO THREE FOUR -FIVE"),
        ("(a b c) {i've / i have} colours", "(A) (B) (C) {I HAVE / I HAVE} COLORS"),
        ("(she's)", "{ (SHE) (IS) / (SHE) (HAS) }"),
        ("( the )  house", "(THE) HOUSE"),
        ("", ""),
    ],
)
def test_texts_through_the_mini_glm(text: str, filtered: str) -> None:
    assert read_glm(MINI_GLM, "ref").filter_text(text) == filtered


def test_hypothesis_words_are_filtered_one_by_one(tmp_path: Path) -> None:
    path = write_glm(tmp_path, "GOOD BYE => GOODBYE", "[IT'S] => [{IT IS / IT HAS / @}] / [ ] __ [ ]", "OOPS => []")
    words = share_out("r", "A", 1.0, 6.0, ["good", "bye", "well-known", "it's", "oops", "x" * 300])
    items = filter_hypothesis(words, read_glm(path, "hyp"))
    assert [line for item in items for line in item.lines()] == [
        "r A 1.00 1.00 GOOD",
        "r A 2.00 1.00 BYE",
        "r A 3.00 0.50 WELL",
        "r A 3.50 0.50 KNOWN",
        "r A * * <ALT_BEGIN>",
        "r A 4.00 0.50 IT",
        "r A 4.50 0.50 IS",
        "r A * * <ALT>",
        "r A 4.00 0.50 IT",
        "r A 4.50 0.50 HAS",
        "r A * * <ALT>",
        "r A 4.00 1.00 @",
        "r A * * <ALT_END>",
        f"r A 6.00 1.00 {'X' * MAX_WORD}",
    ]
    assert items[4].middle == 4.75


def csrfilt(kind: str, purpose: str, lines: list[str]) -> list[str]:
    """The lines through NIST's filter, as hubscr.pl calls it."""
    folder = str(find_sclite().parent)
    command = [f"{folder}/csrfilt.sh", "-i", kind, "-t", purpose, "-dh", str(MINI_GLM)]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{folder}"}
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


def rounded(line: str) -> list[str]:
    """The fields of a CTM line; csrfilt.sh gives three places for the times of parts of a word."""
    fields = line.split()
    return [*fields[:2], *(f if f == "*" else f"{float(f):.2f}" for f in fields[2:4]), *fields[4:]]


@needs_sctk
@pytest.mark.parametrize("seed", range(4))
def test_references_are_those_of_csrfilt(seed: int) -> None:
    segments, _ = make_calls(seed)
    theirs = csrfilt("stm", "ref", [segment.line() for segment in segments])
    ours = [segment.line() for segment in filter_reference(segments, read_glm(MINI_GLM, "ref"), "stm")]
    assert ours == [line.strip() for line in theirs]


@needs_sctk
def test_hypotheses_are_those_of_csrfilt() -> None:
    vocabulary = sorted({word.word for seed in range(20) for word in make_calls(seed)[1]})
    words = [CtmWord("sw_1", "A", float(i), 0.96, word) for i, word in enumerate(vocabulary)]
    theirs = csrfilt("ctm", "hyp", [word.line() for word in words])
    ours = [line for item in filter_hypothesis(words, read_glm(MINI_GLM, "hyp")) for line in item.lines()]
    assert any("<ALT>" in line for line in ours)
    assert list(map(rounded, ours)) == list(map(rounded, theirs))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "no global mapping file"),
        ("UH => OH\n", "no global mapping file"),
        ("\x00\x01\n", "line 1: a NUL byte"),
        (";;\nUH OH\n", "line 2: expected `WORDS => WORDS"),
        (";;\n* name\nUH => OH\n", "line 2: expected `\\* name = 'value'`"),
        (";;\n* format = 'NIST2'\n", "line 2: rules of format 'NIST2'"),
        (';;\n;; INPUT_DEPENDENT_APPLICATION = "("\n', "line 2: '\\(' is no regular expression"),
        (";;\n\n;; nothing\n", "holds no rules"),
    ],
)
def test_files_that_are_no_glm(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "bad.glm"
    path.write_text(content)
    with pytest.raises(UserError, match=f"bad.glm.*{match}"):
        read_glm(path, "ref")


def test_missing_glm(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.glm does not exist"):
        read_glm(tmp_path / "none.glm", "ref")


@pytest.mark.parametrize("text", ["a (b", "a) b", "((a))", "{ a / b", "a } b", "x{a / b}", "{ / }"])
def test_marks_that_do_not_pair(text: str) -> None:
    segment = StmSegment("sw_1", "B", "s", 1.0, 2.0, (), text)
    with pytest.raises(UserError, match="the.stm, segment sw_1 B 1.00: (parentheses|braces) that do not pair"):
        filter_reference([segment], read_glm(MINI_GLM, "ref"), "the.stm")
