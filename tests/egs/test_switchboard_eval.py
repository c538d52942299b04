"""Stage 2 of the Switchboard recipe: test sets from STM, PEM and GLM as they lie on LDC's discs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowbit_k2.scoring.stm import StmSegment, read_stm, read_stm_header
from tests.egs.scripts import Run, call, files_of, refused
from tests.egs.swbd_discs import LOCAL, local_module, write_call

SCRIPT = LOCAL / "prepare_eval.py"
RULES = ";; rules\nUH => %HESITATION / [ ] __ [ ]\n"
HEADER = """\
;; CATEGORY "0" "" ""
;; LABEL "O" "Overall" "Complete Test Set"
;; CATEGORY "1" "Corpus" ""
;; LABEL "EN" "Callhome" "Callhome conversations"
;; LABEL "SW" "Switchboard" "Switchboard conversations"
"""
SEGMENTS = """\
en_4156 A en_4156_A 0.00 1.00 <O,en,F,en-F> IGNORE_TIME_SEGMENT_IN_SCORING
en_4156 A en_4156_A 1.15 2.48 <O,en,F,en-F>  OH YEAH
en_4156 B en_4156_B 2.50 4.00 <O,en,M,en-M> ((%HESITATION) { I'VE / I HAVE } <B_ASIDE> TH- (RIGHT) <E_ASIDE>
sw_4390 A inter_segment_gap 0.00 1.00 <O,sw,F,sw-F>
sw_4390 A sw_4390_A 3.00 10.04 <O,sw,F,sw-F> uh-huh [laughter] { yes / @ }
sw_4390 B sw_4390_B 5.00 6.00 <O,sw,F,sw-F> (%hesitation)
"""
PEM = """\
;; comment
en_4156 A unknown_speaker 0.00 1.00
en_4156 A unknown_speaker 1.15 2.48
en_4156 B unknown_speaker 2.50 4.00
sw_4390 A unknown_speaker 3.00 10.04
sw_4390 B unknown_speaker 5.00 6.00
"""


@pytest.fixture
def eval2000(tmp_path: Path) -> Path:
    """Two calls of ten seconds in the layout of LDC2002S09 and LDC2002T43."""
    audio, text = tmp_path / "LDC2002S09/hub5e_00/english", tmp_path / "LDC2002T43/2000_hub5_eng_eval_tr/reference"
    for name in ("en_4156", "sw_4390"):
        write_call(audio / f"{name}.sph")
    (audio / "hub5e_00.pem").write_text(PEM)
    text.mkdir(parents=True)
    (text / "hub5e00.english.000405.stm").write_text(HEADER + SEGMENTS)
    (text / "hub5e00.mandarin.000405.stm").write_text("rubbish\n")
    (text / "en20000405_hub5.glm").write_text(RULES)
    (text / "ma20000405_hub5.glm").write_text(";; others\n")
    return tmp_path


def prepare(root: Path, *flags: str | Path, test_set: str = "eval2000") -> Run:
    where = ["--audio-dir", root / "LDC2002S09", "--text-dir", root / "LDC2002T43", "--data-dir", root / "data"]
    return call(SCRIPT, "--test-set", test_set, *where, *flags)


def read(root: Path, test_set: str):
    from lhotse import load_manifest

    folder = root / "data/manifests"
    return [load_manifest(folder / f"swbd_{kind}_{test_set}.jsonl.gz") for kind in ("recordings", "supervisions")]


def test_eval2000(eval2000: Path) -> None:
    run = prepare(eval2000).good()
    assert run.err == ""
    assert run.out == "eval2000: 4 segments (2 callhm, 2 swbd) of 2 calls, 0.00 hours; en20000405_hub5.glm\n"
    recordings, supervisions = read(eval2000, "eval2000")
    assert [r.id for r in recordings] == ["en_4156", "sw_4390"]
    found = [(s.id, s.channel, round(s.duration, 3), s.custom["subset"], s.text) for s in supervisions]
    assert found == [
        ("en_4156-A_000115-000248", 0, 1.33, "callhm", "oh yeah"),
        ("en_4156-B_000250-000400", 1, 1.5, "callhm", "uh i've th- right"),
        ("sw_4390-A_000300-001004", 0, 7.0, "swbd", "uh-huh yes"),
        ("sw_4390-B_000500-000600", 1, 1.0, "swbd", "uh"),
    ]
    assert {s.speaker for s in supervisions} == {"en_4156-A", "en_4156-B", "sw_4390-A", "sw_4390-B"}


def test_stm_and_glm_for_scoring(eval2000: Path) -> None:
    """Cleaned of what sclite does not know, labels, alternatives and ignored stretches kept."""
    prepare(eval2000).good()
    stm = eval2000 / "data/eval2000/stm"
    assert read_stm_header(stm) == HEADER.splitlines()
    segments = read_stm(stm)
    assert [(s.recording, s.channel, s.start, s.is_ignored) for s in segments] == [
        ("en_4156", "A", 0.0, True),
        ("en_4156", "A", 1.15, False),
        ("en_4156", "B", 2.5, False),
        ("sw_4390", "A", 3.0, False),
        ("sw_4390", "B", 5.0, False),
    ]
    assert segments[2].text == "(%HESITATION) { I'VE / I HAVE } TH- (RIGHT)" and segments[2].labels[1] == "en"
    assert (eval2000 / "data/eval2000/glm").read_text() == RULES


def test_features_of_a_test_set(eval2000: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lhotse.audio.backend as backend
    from lhotse import load_manifest

    monkeypatch.setattr(backend, "CURRENT_AUDIO_BACKEND", None)
    monkeypatch.setenv("LHOTSE_AUDIO_BACKEND", "LibsndfileBackend")
    prepare(eval2000).good()
    data = eval2000 / "data"
    flags = ["--corpus", "swbd", "--splits", "eval2000", "--manifest-dir", data / "manifests"]
    call("lowbit_k2.recipe.compute_fbank", *flags, "--output-dir", data / "fbank", "--sampling-rate", 8000).good()
    cuts = load_manifest(data / "fbank/swbd_cuts_eval2000.jsonl.gz")
    assert {cut.id: cut.supervisions[0].custom["subset"] for cut in cuts} == {
        s.id: s.custom["subset"] for s in read(eval2000, "eval2000")[1]
    }


# --- rt02 and rt03 ----------------------------------------------------------------------------------------------


def test_rt03(tmp_path: Path) -> None:
    """Channels 1 and 2, several STMs in one folder, other languages and broadcast news beside it."""
    root = tmp_path / "LDC2007S10/data"
    for name in ("sw_45100", "fsh_60354"):
        write_call(root / f"audio/eval03/english/cts/{name}.sph")
    write_call(root / "audio/eval03/english/bn/20010214.sph", channels=1)
    stms = {
        "references/eval03/english/cts/sw_45100.stm": ";; a\nsw_45100 1 sw_45100_A 0.00 1.00 <o,f0,male> hello there",
        "references/eval03/english/cts/fsh_60354.stm": ";; a\nfsh_60354 2 x 2.00 3.00 <o,f,m> yes (uh-huh) U. S.'s mr.",
        "references/eval03/english/bn/20010214.stm": "20010214 1 x 0.00 1.00 <o,f0,male> news",
        "references/eval03/mandarin/cts/ma_0001.stm": "rubbish",
    }
    for name, text in stms.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    (root / "trans_rules").mkdir()
    for name in ("en20030506.glm", "en20010101.glm", "ma20030506.glm"):
        (root / "trans_rules" / name).write_text(RULES)
    run = call(SCRIPT, "--test-set", "rt03", "--audio-dir", root, "--data-dir", tmp_path / "data").good()
    assert run.out == "rt03: 2 segments (1 fsh, 1 swbd) of 2 calls, 0.00 hours; en20030506.glm\n" and run.err == ""
    _, supervisions = read(tmp_path, "rt03")
    assert [(s.id, s.channel, s.text) for s in supervisions] == [
        ("fsh_60354-B_000200-000300", 1, "yes uh-huh u s's mr."),
        ("sw_45100-A_000000-000100", 0, "hello there"),
    ]
    lines = (tmp_path / "data/rt03/stm").read_text().splitlines()
    assert lines[0] == ";; a" and lines[1].startswith("fsh_60354 B x 2.00 3.00 <o,f,m> ") and len(lines) == 3


@pytest.mark.parametrize(
    ("test_set", "recording", "labels", "titles", "subset"),
    [
        ("eval2000", "sw_4390", ("O", "sw", "F"), {}, "swbd"),
        ("eval2000", "en_4156", ("O", "en", "F"), {"en": "callhome callhome conversations"}, "callhm"),
        ("eval2000", "en_4156", (), {}, "callhm"),
        ("eval2000", "ma_4156", (), {}, "other"),
        ("rt02", "sw_4687", (), {}, "swbd1"),
        ("rt02", "sw_30045", (), {}, "swbd2"),
        ("rt02", "sw_45355", (), {}, "swbdcell"),
        ("rt02", "x_1", ("O", "SW1"), {}, "swbd1"),
        ("rt02", "x_1", ("O", "swbd2"), {}, "swbd2"),
        ("rt02", "x_1", ("O", "C1"), {"c1": "switchboard-1 conversations"}, "swbd1"),
        ("rt02", "x_1", ("O", "C2"), {"c2": "switchboard ii conversations"}, "swbd2"),
        ("rt02", "x_1", ("O", "C3"), {"c3": "switchboard cellular"}, "swbdcell"),
        ("rt02", "x_1", ("O", "swbcell"), {}, "swbdcell"),
        ("rt02", "ab_1", ("O", "F"), {}, "other"),
        ("rt03", "sw_45355", ("o", "f0", "male"), {}, "swbd"),
        ("rt03", "fsh_60354", ("o", "f0", "male"), {}, "fsh"),
        ("rt03", "x_1", ("o", "c"), {"c": "fisher"}, "fsh"),
    ],
)
def test_subsets(test_set: str, recording: str, labels: tuple, titles: dict, subset: str) -> None:
    segment = StmSegment(recording, "A", "x", 0.0, 1.0, labels, "yes")
    assert local_module("prepare_eval").name_subset(test_set, segment, titles) == subset


# --- discs that are not as they should be -----------------------------------------------------------------------


def test_bad_lines_are_counted(eval2000: Path) -> None:
    stm = next(eval2000.rglob("*.english.*.stm"))
    stm.write_text(
        HEADER
        + SEGMENTS
        + "en_4156 A en_4156_A 1.15 2.48 <O,en,F,en-F> OH YEAH\n"  # twice
        + "en_4156 A en_4156_A 9.00 10.50 <O,en,F,en-F> LATE\n"
        + "en_4156 A en_4156_A 12.00 13.00 <O,en,F,en-F> TOO LATE\n"
        + "en_4156 A en_4156_A 1.151 2.481 <O,en,F,en-F> NEARLY THE SAME\n"
        + "en_4156 A en_4156_A 3.00 4.00 <O,en,F,en-F> (UH (%HESITATION) WELL) SO ( ) (RIGHT\n"
    )
    pem = next(eval2000.rglob("*.pem"))
    pem.write_text(PEM + "en_4156 A unknown_speaker 5.00 6.00\nen_4156 C\n")
    run = prepare(eval2000).good()
    for line in (
        "1 segments of the STM occur twice, first",
        "2 segments lie outside of their audio, first en_4156-A_000900-001050, which has 10.0 s",
        "1 segments are closer than 0.01 s to another one and left out, first en_4156-A_000115-000248",
        "1 segments of the PEM are not in the STM, first",
        "1 lines of the PEM are not understood, first",
        "1 segments of the STM have parentheses that do not pair, dropped, first",
    ):
        assert f"warning: {line}" in run.err, run.err
    assert len(run.err.splitlines()) == 6 and "eval2000: 6 segments" in run.out
    assert "3.00 4.00 <O,en,F,en-F> UH (%HESITATION) WELL SO RIGHT\n" in (eval2000 / "data/eval2000/stm").read_text()
    _, supervisions = read(eval2000, "eval2000")
    assert supervisions["en_4156-A_000900-001050"].end == 10.0


def test_a_call_without_audio_stops_it(eval2000: Path) -> None:
    next(eval2000.rglob("sw_4390.sph")).unlink()
    before = files_of(eval2000)
    line = prepare(eval2000).error()
    assert "lacks 1 of the 2 calls in the STM, first sw_4390.sph" in line and files_of(eval2000) == before


def test_a_call_of_one_channel_stops_it(eval2000: Path) -> None:
    write_call(next(eval2000.rglob("sw_4390.sph")), channels=1)
    assert "sw_4390.sph has 1 channels, expected 2" in prepare(eval2000).error()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("stm", "holds no STM of English telephone speech: check the folder, or give --stm"),
        ("glm", "holds no .glm, without which nobody's scores compare: give --glm"),
    ],
)
def test_missing_parts(eval2000: Path, damage: str, words: str) -> None:
    for path in eval2000.rglob(f"*.{damage}"):
        path.unlink()
    flags = ("--audio-dir", "TMP/LDC2002S09", "--text-dir", "TMP/LDC2002T43", "--data-dir", "TMP/data")
    assert words in refused(eval2000, SCRIPT, "--test-set", "eval2000", *flags)


@pytest.mark.parametrize(
    ("rules", "words"), [("", "is no global mapping file"), (";; a\n", "holds no rules"), (";; a\nUH -> X\n", "line 2")]
)
def test_rules_that_are_none_stop_it_before_a_model_is_trained(eval2000: Path, rules: str, words: str) -> None:
    (eval2000 / "my.glm").write_text(rules)
    assert words in prepare(eval2000, "--glm", eval2000 / "my.glm").error()
    assert not (eval2000 / "data").exists()


def test_named_files_come_first(eval2000: Path) -> None:
    stm, glm = eval2000 / "my.stm", eval2000 / "my.glm"
    stm.write_text("sw_4390 A x 1 2 <O,sw,F,sw-F> yes\n")
    glm.write_text(";; mine\nUM => UH\n")
    run = prepare(eval2000, "--stm", stm, "--glm", glm).good()
    assert "eval2000: 1 segments (1 swbd) of 1 calls" in run.out
    assert (eval2000 / "data/eval2000/glm").read_text() == ";; mine\nUM => UH\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sw_4390 C x 1 2 <O,sw,F,sw-F> yes", "sw_4390 has channel 'C', expected A or B"),
        ("sw_4390 A x 1 <O,sw,F,sw-F> yes", "line 1: '1' and '<O,sw,F,sw-F>' are no times"),
        ("sw_4390 A x 1 2 <O,sw,F,sw-F> IGNORE_TIME_SEGMENT_IN_SCORING", "has no segment that is scored"),
        ("sw_4390 A x 1 2 <O,sw,F,sw-F> yes { no", "STM of eval2000, segment sw_4390 A 1.00: braces that do not"),
    ],
)
def test_damaged_stms(eval2000: Path, line: str, words: str) -> None:
    (eval2000 / "my.stm").write_text(line + "\n")
    assert words in prepare(eval2000, "--stm", eval2000 / "my.stm").error()
