"""From decode's recogs file and cuts to a table of error rates: counts by hand, files, and bad input in one line."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment

from lowbit_k2.errors import UserError
from lowbit_k2.scoring import hub5
from lowbit_k2.scoring.hub5 import format_score, score
from lowbit_k2.scoring.nist import ScoreStats
from lowbit_k2.scoring.recogs import write_recogs
from lowbit_k2.scoring.stm import IGNORED
from tests.scoring.calls import MINI_GLM, needs_sctk

STM = f"""\
;; LABEL "O" "Overall" "Overall"
en_1 A en_1_A 0.00 2.00 <O,en> (%HESITATION) i'm going to the th- theatre
en_1 A en_1_A 2.00 3.00 <O,en> {IGNORED}
en_1 A en_1_A 3.00 4.00 <O,en> okay
en_1 B en_1_B 1.00 3.00 <O,en> she's {{ kind of / sort of }} well-known
sw_2 A sw_2_A 0.00 2.00 <O,sw> yeah (i) see
"""
HEARD = {
    "en_1-A_000000-000200": ["[noise]", "i", "am", "gonna", "the", "this", "theater"],  # all correct
    "en_1-A_000300-000400": ["o.", "k.", "uh"],  # one inserted
    "en_1-B_000100-000300": ["she", "was", "sorta", "well", "known"],  # one substituted
    "sw_2-A_000000-000200": [],  # two deleted, the optional word correct
}
EXPECTED = {
    "swbd": ScoreStats(segments=1, ref_words=3, sub=0, ins=0, dels=2),
    "callhm": ScoreStats(segments=3, ref_words=16, sub=1, ins=1, dels=0),
    "all": ScoreStats(segments=4, ref_words=19, sub=1, ins=1, dels=2),
}
BOTH = ["python", pytest.param("sclite", marks=needs_sctk)]


@dataclass
class Inputs:
    """What a test set is scored from; `folder` is the output folder."""

    recogs: Path
    cuts: CutSet
    stm: Path
    glm: Path
    folder: Path

    def score(self, scorer: str = "python") -> dict[str, ScoreStats]:
        return score(self.recogs, self.cuts, self.stm, self.glm, self.folder, scorer).subsets

    def write(self, heard: dict[str, list[str]]) -> None:
        write_recogs(self.recogs, [(utterance, [], words) for utterance, words in heard.items()])


def make_cut(name: str, subset: str | None = "") -> MonoCut:
    """A cut from its name: recording-channel_start-end in centiseconds."""
    place, times = name.rsplit("_", 1)
    recording, channel = place.rsplit("-", 1)
    start, end = (int(time) / 100 for time in times.split("-"))
    custom = {"subset": subset or ("swbd" if recording.startswith("sw") else "callhm")} if subset is not None else None
    duration, index = round(end - start, 2), "AB".index(channel)
    supervision = SupervisionSegment(name, recording, 0.0, duration, channel=index, text="x", custom=custom)
    return MonoCut(name, start, duration, index, supervisions=[supervision])


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    stm = tmp_path / "the.stm"
    stm.write_text(STM)
    cuts = CutSet.from_cuts(make_cut(name) for name in HEARD)
    made = Inputs(tmp_path / "recogs-eval2000.txt", cuts, stm, MINI_GLM, tmp_path / "out")
    made.write(HEARD)
    return made


@pytest.mark.parametrize("scorer", BOTH)
def test_counts_by_subset(inputs: Inputs, scorer: str) -> None:
    assert inputs.score(scorer) == EXPECTED
    assert list(inputs.score(scorer)) == ["swbd", "callhm", "all"]


@pytest.mark.parametrize("scorer", BOTH)
def test_files(inputs: Inputs, scorer: str) -> None:
    inputs.score(scorer)
    folder = inputs.folder
    assert (folder / "hyp.ctm").read_text().splitlines()[:2] == [
        "en_1 A 0.00 0.333333 i",
        "en_1 A 0.333333 0.333333 am",
    ]
    assert "{SHE IS / SHE HAS} { KIND OF / SORT OF } WELL KNOWN" in (folder / "ref.filt.stm").read_text()
    assert "en_1 A 0.666667 0.166666 GOING" in (folder / "hyp.filt.ctm").read_text()
    rows = [line.split("\t") for line in (folder / "segments.tsv").read_text().splitlines()]
    assert len(rows) == 5 and rows[-1] == ["sw_2", "A", "sw_2_A", "0.00", "2.00", "swbd", "1", "0", "0", "2"]
    found = json.loads((folder / "scores.json").read_text())
    assert found["scorer"] == scorer and found["subsets"]["all"]["rate"] == pytest.approx(4 / 19)
    assert "| %WER" in (folder / "scores.txt").read_text()
    assert (folder / "sclite.pra").is_file() == (scorer == "sclite")


@needs_sctk
def test_reports_of_an_earlier_run_do_not_stay(inputs: Inputs) -> None:
    inputs.score("sclite")
    inputs.score("python")
    assert not list(inputs.folder.glob("sclite.*"))


def test_table(inputs: Inputs) -> None:
    done = score(inputs.recogs, inputs.cuts, inputs.stm, inputs.glm, inputs.folder, "python")
    assert format_score(done).splitlines() == [
        "|  | swbd | callhm | all |",
        "| --- | --- | --- | --- |",
        "| %WER | 66.67 | 12.50 | 21.05 |",
        "| words | 3 | 16 | 19 |",
        "| ins / del / sub | 0 / 2 / 0 | 1 / 0 / 1 | 1 / 2 / 1 |",
        "| segments | 1 | 3 | 4 |",
        "Scored by lowbit_k2's own scorer (by NIST's rules, without sclite); `all` weights the parts by their words.",
    ]


def test_auto_takes_sclite_where_it_is(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub5, "find_sclite", lambda: None)
    arguments = (inputs.recogs, inputs.cuts, inputs.stm, inputs.glm, inputs.folder)
    assert score(*arguments).scorer == "python"
    calls = []
    monkeypatch.setattr(hub5, "find_sclite", lambda: Path("/somewhere/sclite"))
    monkeypatch.setattr(hub5, "score_with_sclite", lambda program, *_: calls.append(program) or [])
    assert score(*arguments).scorer == "sclite" and calls == [Path("/somewhere/sclite")]


def test_sclite_wanted_but_missing(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub5, "find_sclite", lambda: None)
    with pytest.raises(UserError, match="sclite is not installed: `apt-get install sctk`.*the Python scorer"):
        inputs.score("sclite")
    assert not inputs.folder.exists()


def test_channels_and_recordings_as_the_reference_names_them(inputs: Inputs) -> None:
    text = STM.replace(" A ", " 1 ").replace(" B ", " 2 ").replace("sw_2", "SW_2")
    inputs.stm.write_text(text)
    assert inputs.score() == EXPECTED
    assert "en_1 2 1.00 " in (inputs.folder / "hyp.ctm").read_text()


@pytest.mark.parametrize("scorer", BOTH)
def test_letters_with_dots(inputs: Inputs, scorer: str) -> None:
    """rt03's reference spells acronyms with dots; our models, like eval2000's, without."""
    segment = "sw_2 A sw_2_A 0.00 2.00 <O,sw>"
    inputs.write({**HEARD, "sw_2-A_000000-000200": ["a", "u", "s", "a", "t", "v's", "okay", "i"]})
    inputs.stm.write_text(STM.replace(f"{segment} yeah (i) see", f"{segment} a U. S. A. (T.'s) {{ V.'s / V. }} okay i"))
    stats = inputs.score(scorer)["swbd"]
    assert (stats.ref_words, stats.errors, stats.sub) == (9, 1, 1)  # okay is O. K., and t is no T.'s
    inputs.stm.write_text(STM.replace(f"{segment} yeah (i) see", f"{segment} b c u. s."))
    inputs.write({**HEARD, "sw_2-A_000000-000200": ["b", "c", "u", "s"]})
    assert inputs.score(scorer)["swbd"].sub == 2, "mostly without dots: as NIST's rules have it"


def test_cuts_without_subsets(inputs: Inputs) -> None:
    inputs.cuts = CutSet.from_cuts(make_cut(name, subset=None) for name in HEARD)
    assert inputs.score() == {"all": EXPECTED["all"]}


def test_recordings_without_cuts_are_a_part_of_their_own(inputs: Inputs) -> None:
    inputs.stm.write_text(STM + "sw_9 A s 0 1 <O> hello there\n")
    found = inputs.score()
    assert list(found) == ["swbd", "callhm", "other", "all"]
    assert found["other"] == ScoreStats(0, 2, 0, 2, segments=1)


def test_missing_hypotheses_are_counted(inputs: Inputs, caplog: pytest.LogCaptureFixture) -> None:
    inputs.write({name: words for name, words in HEARD.items() if name.startswith("sw")})
    with caplog.at_level(logging.WARNING):
        assert inputs.score()["all"].dels == 2 + 15  # all but the optional words
    assert "lacks 3 of 4 cuts: all their words count as deleted" in caplog.text


def test_channels_that_the_reference_lacks(inputs: Inputs, caplog: pytest.LogCaptureFixture) -> None:
    inputs.stm.write_text("".join(line + "\n" for line in STM.splitlines() if " B " not in line))
    with caplog.at_level(logging.WARNING):
        assert inputs.score()["all"].ins == 1
    assert "the.stm lacks 1 channels that have words, first en_1 B: these are not scored" in caplog.text


def change_recogs(inputs: Inputs) -> None:
    inputs.write({"sw_7-A_000000-000100": ["hello"], **HEARD})


def change_cuts(inputs: Inputs) -> None:
    inputs.write({"sw_7-A_000000-000100": ["hello"]})
    inputs.cuts = CutSet.from_cuts([make_cut("sw_7-A_000000-000100")])


def cut_without_supervision(inputs: Inputs) -> None:
    inputs.cuts = CutSet.from_cuts([*inputs.cuts, MonoCut("music", 0, 1, 0)])


STRANGE = ["{", "}", "(see", "see)", "@", "(@)", "{a/b}", "a b", "*", "see*", ";;", "\\", "|", "see\x1b", "<ALT>x"]


@pytest.mark.parametrize("scorer", BOTH)
@pytest.mark.parametrize("word", STRANGE)
def test_a_strange_word_is_one_wrong_word(inputs: Inputs, scorer: str, word: str) -> None:
    """Whatever a recogniser puts out costs its own word, not the file, and never counts as right."""
    inputs.write({**HEARD, "sw_2-A_000000-000200": ["zebra"]})
    expected = inputs.score(scorer)
    inputs.write({**HEARD, "sw_2-A_000000-000200": [word]})
    assert inputs.score(scorer) == expected


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (change_recogs, r"recogs-eval2000.txt: 1 of 5 utterances are not among the cuts, first sw_7-A_000000-000100"),
        (change_cuts, "the.stm has none of the 1 recordings of the cuts, for example not sw_7"),
        (cut_without_supervision, "cut music has 0 supervisions"),
        (lambda i: i.recogs.unlink(), "recogs-eval2000.txt does not exist"),
        (lambda i: i.recogs.write_text("a b c\n"), "recogs-eval2000.txt line 1: expected"),
        (lambda i: i.stm.unlink(), "the.stm does not exist"),
        (lambda i: i.stm.write_text("garbage\n"), "the.stm line 1: expected"),
        (lambda i: i.stm.write_text(STM.replace("(i)", "(i")), "the.stm, segment sw_2 A 0.00: parentheses"),
        (lambda i: setattr(i, "glm", i.stm), "the.stm line 2: expected `WORDS => WORDS"),
        (lambda i: setattr(i, "glm", i.folder / "glm"), "glm does not exist"),
    ],
)
def test_bad_input(inputs: Inputs, spoil: object, match: str) -> None:
    spoil(inputs)
    with pytest.raises(UserError, match=match) as error:
        inputs.score()
    assert "\n" not in str(error.value) and not inputs.folder.exists()
