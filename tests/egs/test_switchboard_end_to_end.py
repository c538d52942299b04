"""The Switchboard recipe from discs to scored words: simulated calls of real voices, and the embedded corpus."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from lowbit_k2.asr.recognizer import METHODS
from lowbit_k2.data.features import read_feature_config
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.k2_compat import has_k2
from lowbit_k2.train.checkpoint import load_checkpoint
from tests.egs.scripts import ROOT, TINY, Flag, Run, call, files_of, local_module, spawn
from tests.egs.swbd_discs import write_discs

SWITCHBOARD = ROOT / "egs/switchboard"
PREPARE = SWITCHBOARD / "prepare.sh"
TEST_CALLS = {"3009": "sw_3009", "3010": "en_3010"}  # taken as a test set: one of each part
CTC = [name for name, kind in METHODS.items() if kind.network == "ctc" and (has_k2() or name == "ctc-greedy-search")]


def write_test_set(sim: Path, folder: Path) -> None:
    """Two calls as eval2000's discs have them: audio, STM with what is said and what is not scored, GLM."""
    audio, text = folder / "LDC2002S09/hub5e_00/english", folder / "LDC2002T43/reference"
    audio.mkdir(parents=True)
    text.mkdir(parents=True)
    lines = []
    for number, name in TEST_CALLS.items():
        shutil.copy(sim / f"LDC97S62/swb1_d1/data/sw0{number}.sph", audio / f"{name}.sph")
        label = name[:2]
        for path in sorted((sim / f"swb_ms98_transcriptions/30/{number}").iterdir()):
            side = path.name[6]
            for segment in path.read_text().splitlines()[:8]:
                _, start, end, words = segment.split(maxsplit=3)
                said = "IGNORE_TIME_SEGMENT_IN_SCORING" if words == "[silence]" else f"(uh) {words}"
                lines.append(f"{name} {side} {name}_{side} {start} {end} <O,{label},M,{label}-M> {said}\n")
    header = ';; LABEL "O" "Overall" ""\n;; LABEL "en" "Callhome" ""\n;; LABEL "sw" "Switchboard" ""\n'
    (text / "hub5e00.english.000405.stm").write_text(header + "".join(lines))
    shutil.copy(SWITCHBOARD / "local/mini.glm", text / "en20000405_hub5.glm")


@pytest.fixture(scope="module")
def flags(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Flag]:
    """The flags of prepare.sh for swbd_sim."""
    folder = tmp_path_factory.mktemp("swbd")
    sim = data_dir / "swbd_sim"
    write_test_set(sim, folder)
    named = ["--swbd-dir", sim / "LDC97S62", "--ms98-dir", sim / "swb_ms98_transcriptions"]
    named += ["--eval2000-audio", folder / "LDC2002S09", "--eval2000-text", folder / "LDC2002T43"]
    return [*named, "--data-dir", folder / "data", "--vocab-sizes", 60, "--perturb-speed", "false", "--nj", 1]


@pytest.fixture(scope="module")
def data(flags: list[Flag]) -> Path:
    """What prepare.sh made of them."""
    run = spawn(PREPARE, *flags).good()
    assert "No sw-ms98-dict.text" in run.out
    return Path(str(flags[flags.index("--data-dir") + 1]))


@pytest.fixture(scope="module")
def exp(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after a few updates."""
    folder = tmp_path_factory.mktemp("swbd-exp") / "exp"
    train(data, folder)
    return folder


def train(data: Path, folder: Path, *more: Flag) -> Run:
    where = ["--manifest-dir", data / "fbank", "--lang-dir", data / "lang_bpe_60", "--exp-dir", folder]
    sizes = ["--max-duration", 400, "--num-buckets", 1, "--warm-step", 2, "--average-period", 1, "--num-epochs", 1]
    return call(SWITCHBOARD / "train.py", *where, *TINY.split(), *sizes, *more).good()


def test_discs_become_narrow_band_features(data: Path) -> None:
    config = read_feature_config(data / "fbank")
    assert (config.sampling_rate, config.num_mel_bins, config.low_freq, config.high_freq) == (8000, 80, 20, -200)
    cuts = {split: load_cuts(data / "fbank", "swbd", split) for split in ("train", "dev", "eval2000")}
    assert {split: len(c) for split, c in cuts.items()} == {"train": 180, "dev": 20, "eval2000": 16}
    assert {cut.supervisions[0].custom["subset"] for cut in cuts["eval2000"]} == {"swbd", "callhm"}
    assert all(cut.num_features == 80 and cut.sampling_rate == 8000 for cut in cuts["train"])
    assert {cut.supervisions[0].channel for cut in cuts["train"]} == {0, 1}
    assert (data / "lang_bpe_60/words.txt").is_file() and (data / "lm/4gram.arpa").is_file()
    assert (data / "lang_bpe_60/HLG.pt").is_file() == has_k2() and not (data / "lang_phone").exists()


def test_a_second_call_does_nothing(data: Path, flags: list[Flag]) -> None:
    before = files_of(data)
    run = spawn(PREPARE, *flags).good()
    assert "Skipped, done before" in run.out and files_of(data) == before


def test_simulated_calls_are_decoded_and_scored(exp: Path, data: Path) -> None:
    """evaluate.py decodes the checkpoint and the packed file, compares them, and scores by NIST's rules."""
    assert load_checkpoint(exp / "epoch-1.pt").meta["features"]["sampling_rate"] == 8000
    methods = [name for name in CTC if "nbest" not in name]
    where = ["--exp-dir", exp, "--data-dir", data, "--lang-dir", data / "lang_bpe_60"]
    run = call(
        SWITCHBOARD / "evaluate.py",
        *where,
        "--precisions",
        2,
        1,
        "--decoding-method",
        ",".join(methods),
        "--output",
        exp / "scores.json",
    ).good()
    table = local_module(SWITCHBOARD / "local", "score_table")
    assert table.format_scores(table.read_scores(exp / "scores.json")) in run.out
    head, _, *rows, scorer = run.out.splitlines()[-5:]
    for method in methods:
        assert all(f"%WER {part}, {method} |" in head for part in ("swbd", "callhm", "all"))
    assert [row.split(" | ")[0] for row in rows] == ["| 2", "| 1"] and scorer.startswith("Scored by ")
    for method in methods:
        scored = sorted((exp / method).glob("score-eval2000-*/scores.txt"))
        assert len(scored) == 2
        [words] = {re.search(r"words +\|(.*)\|", path.read_text())[1] for path in scored}
        assert [int(cell) > 50 for cell in words.split("|")] == [True] * 3
    [recogs] = (exp / CTC[0]).glob("recogs-eval2000-*precision-1.txt")
    named = ["--recogs", recogs, "--cuts", data / "fbank/swbd_cuts_eval2000.jsonl.gz"]
    again = call(SWITCHBOARD / "score.py", *named, "--stm", data / "eval2000/stm", "--scorer", "python").good()
    assert "| swbd | callhm |" in re.sub(" +", " ", again.out)


def test_scripts_one_by_one(exp: Path, data: Path, data_dir: Path, tmp_path: Path) -> None:
    """Export, decode dev from the packed file, and transcribe a call of the discs."""
    file = tmp_path / "model.safetensors"
    call(SWITCHBOARD / "export.py", "--exp-dir", exp, "--precision", 1.5, "--output", file).good()
    where = ["--packed", file, "--exp-dir", tmp_path / "out", "--manifest-dir", data / "fbank"]
    run = call(SWITCHBOARD / "decode.py", *where, "--test-sets", "dev", "--quiet").good()
    assert run.out.count("%WER") == 1 and "[dev, ctc-greedy-search" in run.out
    call_file = data_dir / "swbd_sim/LDC97S62/swb1_d1/data/sw03010.sph"
    run = call(SWITCHBOARD / "decode.py", "--packed", file, "--wav", call_file).good()
    assert run.out.startswith(f"{call_file}\t")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([], "give --swbd-dir"),
        (["--mini", "true", "--swbd-dir", "x"], "--mini makes its own discs"),
        (["--swbd-dir", "x", "--ms98-dir", "y", "--hours", "1"], "--hours goes with --mini"),
        (["--swbd-dir", "x", "--ms98-dir", "y", "--sampling-rate", "11025"], "8000 or 16000"),
        (["--swbd-dir", "x", "--ms98-dir", "y", "--vocab-sizes", "many"], "whole numbers"),
        (["--swbd-dir", "x", "--ms98-dir", "y", "--eval2000-audio", "z"], "needs --eval2000-text"),
        (["--swbd-dir", "x", "--ms98-dir", "y", "--eval2000-text", "z"], "needs --eval2000-audio"),
        (["--swbd-dir", "x", "--ms98-dir", "y", "--rt03", "z"], "unknown flag --rt03"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_wrong_flags(wrong: list[Flag], words: str, tmp_path: Path) -> None:
    assert words in spawn(PREPARE, *wrong, "--data-dir", tmp_path / "data").error(status=2)
    assert not list(tmp_path.iterdir())


def test_paths_with_blanks_and_from_where_the_user_is(tmp_path: Path) -> None:
    """Every folder may have blanks and accents, and be given from the folder that the user is in, Fisher's as well."""
    folder = tmp_path / "mes donn\u00e9es"
    write_discs(folder / "LDC discs", {call: (call, 1000 + call) for call in range(2001, 2005)})
    (folder / "fisher 1").mkdir()
    (folder / "fisher 1/fe_03_00001.txt").write_text("1.0 2.0 A: um hello\n")
    named = ["--swbd-dir", "LDC discs/LDC97S62", "--ms98-dir", "LDC discs/ms98", "--data-dir", "my data"]
    named += ["--fisher-text", f"fisher 1,{folder / 'fisher 1'}", "--vocab-sizes", 16, "--nj", 1]
    before = {path.name for path in SWITCHBOARD.iterdir()}
    spawn(PREPARE, *named, "--stop-stage", 1, cwd=folder).good()
    spawn(PREPARE, *named, "--stage", 4, "--stop-stage", 5, cwd=folder).good()
    assert (folder / "my data/lang_bpe_16/words.txt").is_file() and (folder / "my data/lm/4gram.arpa").is_file()
    assert (folder / "my data/lm/fisher.txt").read_text() == "um hello\num hello\n"
    assert {path.name for path in SWITCHBOARD.iterdir()} == before


def test_discs_that_are_not_there(tmp_path: Path) -> None:
    named = ["--swbd-dir", tmp_path / "nowhere", "--ms98-dir", tmp_path, "--data-dir", tmp_path / "data"]
    line = spawn(PREPARE, *named).error()
    assert "nowhere" in line and "LDC97S62" in line and not (tmp_path / "data").exists()
    line = spawn(PREPARE, *named, "--stage", 3).error()
    assert "run stage 1 first" in line


@pytest.mark.k2
def test_demo(tmp_path: Path) -> None:
    """The one command, on a few minutes of conversation and for one epoch; in a tree of its own."""
    (tmp_path / "egs").mkdir()
    (tmp_path / "lowbit_k2").symlink_to(ROOT / "lowbit_k2")
    folder = tmp_path / "egs/switchboard"
    shutil.copytree(SWITCHBOARD, folder, ignore=shutil.ignore_patterns("data*", "download*", "exp*", "__pycache__"))
    run = spawn(folder / "demo.sh", "--hours", "0.05", "--num-epochs", 1, OMP_NUM_THREADS="2").good()
    table = [line for line in run.out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[-4:]] == ["| 32", "| 2", "| 1.5", "| 1"]
    assert "%WER callhm, 1best" in table[-6] and "%WER swbd, ctc-greedy-search" in table[-6]
    assert (folder / "data-mini/lang_phone/HLG.pt").is_file()


def test_scripts_can_be_started() -> None:
    for name in ("prepare.sh", "demo.sh", "train.py", "decode.py", "export.py", "evaluate.py", "score.py"):
        assert os.access(SWITCHBOARD / name, os.X_OK), name
