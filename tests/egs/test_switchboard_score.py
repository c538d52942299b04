"""egs/switchboard/score.py: its table, its files, its defaults, and bad input in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment

from lowbit_k2.scoring.recogs import write_recogs
from lowbit_k2.scoring.sclite import VARIABLE, find_sclite
from tests.egs.scripts import ROOT, Flag, call, refused

SCORE = ROOT / "egs/switchboard/score.py"
GLM = ROOT / "egs/switchboard/local/mini.glm"
STM = "sw_1 A a 0 2 <O,sw> uh i'm gonna see\nen_1 B b 1 2 <O,en> (uh) colours\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """stm, glm, cuts and a recogs file."""
    supervisions = [
        SupervisionSegment("u1", "sw_1", 0, 2, channel=0, text="x", custom={"subset": "swbd"}),
        SupervisionSegment("u2", "en_1", 0, 1, channel=1, text="x", custom={"subset": "callhm"}),
    ]
    cuts = [MonoCut(s.id, float(s.id == "u2"), s.duration, s.channel, supervisions=[s]) for s in supervisions]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    write_recogs(
        tmp_path / "recogs-eval2000-x.txt", [("u1", [], ["um", "i", "am", "going", "to"]), ("u2", [], ["color"])]
    )
    (tmp_path / "stm").write_text(STM)
    (tmp_path / "glm").write_bytes(GLM.read_bytes())
    return tmp_path


def flags(folder: Path, *others: Flag) -> list[Flag]:
    """How the script is called; of a flag given twice the last counts."""
    where = ["--recogs", folder / "recogs-eval2000-x.txt", "--stm", folder / "stm", "--cuts", folder / "cuts.jsonl.gz"]
    return [*where, *others]


@pytest.mark.parametrize("scorer", ["auto", "python"])
def test_table_and_files(folder: Path, scorer: str) -> None:
    run = call(SCORE, *flags(folder, "--scorer", scorer)).good()
    lines = run.out.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[2:-1]] == ["swbd", "callhm", "all"]
    assert [cell.strip() for cell in lines[2].split("|")[2:-1]] == ["16.67", "50.00", "25.00"]
    by_sclite = scorer == "auto" and find_sclite() is not None
    assert lines[-2].startswith("Scored by NIST's sclite" if by_sclite else "Scored by lowbit_k2's own scorer")
    assert lines[-1] == f"Details in {folder / 'score-eval2000-x'}"
    found = {path.name for path in (folder / "score-eval2000-x").iterdir()}
    assert {"hyp.ctm", "ref.filt.stm", "hyp.filt.ctm", "segments.tsv", "scores.json", "scores.txt"} <= found
    assert ("sclite.dtl" in found) == by_sclite


def test_output_dir_and_glm(folder: Path) -> None:
    output = folder / "deep" / "er"
    call(SCORE, *flags(folder, "--output-dir", output, "--glm", GLM, "--scorer", "python")).good()
    assert (output / "scores.txt").is_file() and not (folder / "score-eval2000-x").exists()


def test_it_can_be_started() -> None:
    assert os.access(SCORE, os.X_OK)


@pytest.mark.parametrize(
    ("others", "match"),
    [
        (["--stm", "TMP/none"], "TMP/none does not exist: give the test set's STM"),
        (["--stm", "TMP/cuts.jsonl.gz"], "TMP/cuts.jsonl.gz line 1: "),
        (["--glm", "TMP/none"], "TMP/none does not exist: give the test set's GLM"),
        (["--glm", "TMP/stm"], "TMP/stm is no global mapping file"),
        (["--cuts", "TMP/none"], "TMP/none does not exist: run prepare.sh"),
        (["--cuts", "TMP/stm"], "TMP/stm cannot be read as cuts"),
        (["--recogs", "TMP/none"], "TMP/none does not exist: give the recogs-*.txt"),
        (["--recogs", "TMP/glm"], "TMP/glm line 1: expected `id:"),
    ],
    ids=map(str, range(8)),
)
def test_bad_input(folder: Path, others: list[Flag], match: str) -> None:
    assert match.replace("TMP", str(folder)) in refused(folder, SCORE, *flags(folder, *others))


def test_recogs_of_another_set(folder: Path) -> None:
    write_recogs(folder / "recogs-eval2000-x.txt", [("u9", [], ["a"])])
    assert "1 of 1 utterances are not among the cuts, first u9" in refused(folder, SCORE, *flags(folder))


def test_sclite_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(folder))
    assert "holds no program sclite" in refused(folder, SCORE, *flags(folder, "--scorer", "sclite"))


def test_defaults_name_what_prepare_makes(folder: Path) -> None:
    line = refused(folder, SCORE, "--recogs", folder / "recogs-eval2000-x.txt", "--test-set", "no-such-set")
    assert str(SCORE.parent / "data/fbank/swbd_cuts_no-such-set.jsonl.gz") in line
    line = refused(folder, SCORE, "--mini", "true", "--recogs", folder / "glm", "--test-set", "no-such-set")
    assert str(SCORE.parent / "data-mini/fbank/swbd_cuts_no-such-set.jsonl.gz") in line
