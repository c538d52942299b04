"""Stage 0 of the Switchboard recipe: what it says of whole, small, broken and absent discs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.egs.scripts import Run, call, refused
from tests.egs.swbd_discs import LOCAL, disc_flags, local_module, write_call, write_discs

SCRIPT = LOCAL / "check_discs.py"
CALLERS = {2001: (1001, 1002), 2002: (1003, 1001)}


def check(root: Path, *flags: str | Path) -> Run:
    return call(SCRIPT, *disc_flags(root), *flags)


def test_simulated_discs(data_dir: Path) -> None:
    sim = data_dir / "swbd_sim"
    run = call(SCRIPT, "--swbd-dir", sim / "LDC97S62", "--ms98-dir", sim / "swb_ms98_transcriptions").good()
    assert run.err == ""
    assert "10 calls, 10 of them with transcripts of both sides" in run.out
    assert "note: a small set of 10 calls; LDC97S62 (Switchboard-1 Release 2) has 2438 (some copies 2435)" in run.out
    assert "no sw-ms98-dict.text" in run.out and "no table of callers" in run.out
    assert "eval2000 is left out: no audio (LDC2002S09, --eval2000-audio), no STM (LDC2002T43, " in run.out
    assert "rt02 is left out: no audio (LDC2004S11, --rt02-dir)" in run.out
    assert "rt03 is left out: no audio (LDC2007S10, --rt03-dir)" in run.out
    assert "no Fisher transcripts (LDC2004T19, LDC2005T19, --fisher-text)" in run.out


@pytest.mark.parametrize(
    ("calls", "out", "err"),
    [(10, "a small set of 10 calls", ""), (2435, "", ""), (2438, "", ""), (2400, "", "2400 calls, but LDC97S62")],
)
def test_numbers_of_calls(capsys: pytest.CaptureFixture[str], calls: int, out: str, err: str) -> None:
    local_module("check_discs").check_number(calls)
    said = capsys.readouterr()
    assert (out in said.out if out else said.out == "") and (err in said.err if err else said.err == "")


def test_whole_discs_with_everything(tmp_path: Path) -> None:
    """Whatever the folders are called, and in capitals."""
    write_discs(tmp_path, CALLERS)
    os.rename(tmp_path / "LDC97S62/swb1_d1/data/sw02002.sph", tmp_path / "LDC97S62/swb1_d1/SW02002.SPH")
    (tmp_path / "ms98/sw-ms98-dict.text").write_text("yeah y ae\n")
    for name in ("sw_4390", "en_4156"):
        write_call(tmp_path / "hub5/english" / f"{name}.sph")
    (tmp_path / "hub5/ref.stm").write_text("")
    (tmp_path / "hub5/en.glm").write_text("")
    (tmp_path / "fisher/data").mkdir(parents=True)
    (tmp_path / "fisher/data/fe_03_00001.txt").write_text("")
    run = check(
        tmp_path,
        *("--eval2000-audio", tmp_path / "hub5", "--eval2000-text", tmp_path / "hub5"),
        *("--fisher-text", tmp_path / "fisher"),
    ).good()
    assert run.err == ""
    for line in (
        "2 calls, 2 of them with transcripts of both sides",
        "sw-ms98-dict.text: the dictionary",
        "conv_tab.csv: 3 callers",
        "eval2000: 2 audio files, STM and GLM",
        "note: eval2000 has 40 calls on LDC's discs, here are 2",
        "Fisher: 1 transcript of 11699",
    ):
        assert line in run.out


def test_other_tasks_on_the_discs_do_not_count(tmp_path: Path) -> None:
    write_discs(tmp_path, CALLERS)
    for name in ("audio/eval03/english/cts/sw_45100", "audio/eval03/english/bn/news", "audio/mandarin/cts/ma_1"):
        write_call(tmp_path / "rt03" / f"{name}.sph", channels=1 if "bn" in name else 2)
    for name in ("a.stm", "en.glm"):
        (tmp_path / "rt03" / name).write_text("")
    run = check(tmp_path, "--rt03-dir", tmp_path / "rt03").good()
    assert "rt03: 1 audio file, STM and GLM" in run.out and run.err == ""


def test_bad_discs_are_counted(tmp_path: Path) -> None:
    callers = {number: (1, 2) for number in range(2001, 2008)}
    write_discs(tmp_path, callers)
    audio = tmp_path / "LDC97S62/swb1_d2/data"
    write_call(audio / "sw02001.sph", channels=1)
    write_call(audio / "sw02003.sph", promised=100000)
    (audio / "sw02005.sph").write_bytes(b"")
    (audio / "sw02007.sph").unlink()
    write_call(audio / "readme.sph")
    write_call(tmp_path / "LDC97S62/copy/sw02002.sph")
    (tmp_path / "ms98/20/2002/sw2002B-ms98-a-trans.text").unlink()
    (tmp_path / "ms98/20/2004/sw2004A-ms98-a-trans.text").write_text("")
    run = check(tmp_path).good()
    assert "6 calls, 5 of them with transcripts of both sides" in run.out
    lines = run.err.splitlines()
    assert len(lines) == 8 and all(line.startswith("warning: ") and ", first " in line for line in lines)
    for line in (
        "1 audio files have the name of another one and are left out, first",
        "1 audio files are not named as Switchboard's are (sw02001.sph), first",
        "1 audio files have not two channels, first",
        "1 audio files are cut, first",
        "1 audio files are unreadable, first",
        "2 transcripts have no audio, first",
        "1 transcripts are empty, first",
        "1 sides have audio and no transcript, first",
    ):
        assert line in run.err
    assert f"{audio / 'sw02003.sph'} (80000 of 100000 samples)" in run.err


def test_compressed_audio_needs_sph2pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_discs(tmp_path, CALLERS)
    write_call(tmp_path / "LDC97S62/swb1_d1/data/sw02002.sph", coding="ulaw,embedded-shorten-v2.00")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "1 audio file compressed with shorten, and no sph2pipe: install sph2pipe" in check(tmp_path).error()
    program = tmp_path / "bin/sph2pipe"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    check(tmp_path).good()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--swbd-dir", "TMP/none", "--ms98-dir", "TMP/ms98"), "no folder .*none: give --swbd-dir the folder of LDC97"),
        (("--swbd-dir", "TMP/LDC97S62", "--ms98-dir", "TMP/no"), "no: give --ms98-dir the folder of the ms98 transc"),
        (("--swbd-dir", "TMP/ms98", "--ms98-dir", "TMP/ms98"), "holds no sw0NNNN.sph: give --swbd-dir .* LDC97S62"),
        (("--swbd-dir", "TMP/LDC97S62", "--ms98-dir", "TMP/LDC97S62"), "holds no swNNNNA-ms98-a-trans.text: .*OpenSLR"),
        (("--swbd-dir", "TMP/other", "--ms98-dir", "TMP/ms98"), "no call of .*other has a transcript in .*ms98"),
    ],
)
def test_nothing_to_train_on(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    write_discs(tmp_path, CALLERS)
    write_call(tmp_path / "other/sw03999.sph")
    line = refused(tmp_path, SCRIPT, *flags)
    assert re.search(words, line), line


def test_a_folder_of_a_test_set_that_is_not_there(tmp_path: Path) -> None:
    write_discs(tmp_path, CALLERS)
    assert "no folder" in check(tmp_path, "--rt03-dir", tmp_path / "none").error()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rt02-dir", "TMP/empty"), "rt02: there is no audio .LDC2004S11, --rt02-dir., no STM .*, no GLM"),
        (("--rt03-dir", "TMP/audio"), "rt03: there is no STM .LDC2007S10, --rt03-dir., no GLM"),
        (("--eval2000-audio", "TMP/audio", "--eval2000-text", "TMP/empty"), "eval2000: there is no STM .LDC2002T43"),
        (("--fisher-text", "TMP/empty,TMP/audio"), "no fe_03_.* below .*empty,.*audio: give --fisher-text LDC2004T19"),
    ],
)
def test_a_part_that_is_named_and_not_there_stops_it(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    """Before hours of work: a later stage would stop there."""
    write_discs(tmp_path, CALLERS)
    write_call(tmp_path / "audio/sw_45100.sph")
    (tmp_path / "empty").mkdir()
    line = check(tmp_path, *(flag.replace("TMP", str(tmp_path)) for flag in flags)).error()
    assert re.search(words, line), line


def test_links_in_circles_have_an_end(tmp_path: Path) -> None:
    write_discs(tmp_path, CALLERS)
    (tmp_path / "LDC97S62/swb1_d1/up").symlink_to(tmp_path / "LDC97S62")
    discs = local_module("discs")
    assert len(discs.find_calls(tmp_path / "LDC97S62", discs.Problems())) == 2


def test_tables_of_callers(tmp_path: Path) -> None:
    discs = local_module("discs")
    (tmp_path / "conv_tab.csv").write_text(
        'conversation_no,active,caller_from,caller_to\n2001, "Y", 1020, 1044, 303\n2002,Y,1020,UNK,303\n2003\n'
    )
    problems = discs.Problems()
    callers, path = discs.read_callers([tmp_path], problems)
    assert callers == {("sw02001", "A"): "1020", ("sw02001", "B"): "1044"} and path == tmp_path / "conv_tab.csv"
    assert problems.counts == {"lines of the table of callers are not understood": 2}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/call_con_tab.csv").write_text('2001, "A", 1, "555-2368", 5, 100, "", "Y"\n2001, "B", 2, "", 5\n')
    callers, path = discs.read_callers([tmp_path], discs.Problems())
    assert callers == {("sw02001", "A"): "1", ("sw02001", "B"): "2"} and path.name == "call_con_tab.csv"
    (tmp_path / "empty").mkdir()
    assert discs.read_callers([tmp_path / "empty"], discs.Problems()) == ({}, None)
