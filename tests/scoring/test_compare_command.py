"""`lowbit-k2 compare` on files as decode.py writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment

from lowbit_k2.scoring.recogs import write_recogs
from tests.egs.scripts import Run, call

MAIN = "lowbit_k2.cli"
REF = ["a", "b", "c", "d", "e"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three systems on 60 utterances of 20 speakers: one error in each, the same elsewhere, and three errors."""
    hyps = {"float": ["a", "b", "c", "d", "x"], "like": ["x", "b", "c", "d", "e"], "bad": ["a", "x", "x", "x", "e"]}
    names = [f"u{n}" for n in range(60)]
    for system, hyp in hyps.items():
        write_recogs(tmp_path / f"recogs-{system}.txt", [(name, REF, hyp) for name in names])
    (tmp_path / "utt2spk").write_text("".join(f"u{n} s{n % 20}\n" for n in range(60)))
    return {name: tmp_path / f"recogs-{name}.txt" for name in hyps} | {"utt2spk": tmp_path / "utt2spk"}


def compare(*flags: object) -> Run:
    return call(MAIN, "compare", *map(str, flags))


def test_a_table(files: dict[str, Path]) -> None:
    run = compare(files["float"], files["like"], files["bad"], "--utt2spk", files["utt2spk"]).good()
    lines = run.out.splitlines()
    assert "bootstrap over speakers" in lines[0] and "within 5.0%" in lines[0]
    [like] = [line for line in lines if line.startswith(str(files["like"])) and "20.00%" in line]
    [bad] = [line for line in lines if line.startswith(str(files["bad"])) and "60.00%" in line]
    assert like.endswith("equivalent") and bad.endswith("worse") and "+200.0%" in bad
    assert f"{files['bad']}: speakers worse / better / equal: 20 / 0 / 0" in lines


def test_json_and_seeds(files: dict[str, Path]) -> None:
    two = f"{files['float']},{files['float']}", f"{files['bad']},{files['like']}"
    found = json.loads(compare(*two, "--json", "--margin", 0.2).good().out)
    [system] = found["systems"]
    assert [cell["verdict"] for cell in system["cells"]] == ["worse", "equivalent"]
    assert system["pooled"]["verdict"] == "worse" and system["pooled"]["other"] == pytest.approx(0.4)
    assert found["unit"] == "utterances" and found["margin"] == 0.2 and system["cells"][0]["mapsswe"]["segments"] == 60
    out = compare(*two).good().out
    assert "all 2" in out and "sign test over 2 cells: p 1.000" in out


def test_speakers_of_cuts(files: dict[str, Path], tmp_path: Path) -> None:
    def cut(n: int) -> MonoCut:
        supervision = SupervisionSegment(f"u{n}", f"u{n}", 0.0, 1.0, text="a", speaker=f"s{n % 5}")
        return MonoCut(f"u{n}", 0.0, 1.0, 0, supervisions=[supervision])

    CutSet.from_cuts(cut(n) for n in range(60)).to_file(tmp_path / "cuts.jsonl.gz")
    out = compare(files["float"], files["bad"], "--cuts", tmp_path / "cuts.jsonl.gz").good().out
    assert "over speakers" in out and "5 speakers are few" in out


def test_what_cannot_be_compared(files: dict[str, Path], tmp_path: Path) -> None:
    write_recogs(tmp_path / "recogs-part.txt", [("u3", REF, REF)])
    part = tmp_path / "recogs-part.txt"
    assert f"{part} lacks 59 utterances (u0, u1, u10, ...)" in compare(files["float"], part).error()
    assert "2 files against 1" in compare(f"{part},{part}", part).error()
    assert "nowhere.txt does not exist" in compare(part, tmp_path / "nowhere.txt").error()
    assert "--margin 5: give a fraction" in compare(part, part, "--margin", 5).error()
    (tmp_path / "utt2spk").write_text("u4 s1\n")
    assert "no speaker is known of u3" in compare(part, part, "--utt2spk", tmp_path / "utt2spk").error()
    assert "required: SYSTEM" in compare(part).error(2)
