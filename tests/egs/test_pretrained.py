"""The model that comes with the project says the words that are written down, and its demo runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json, sha256
from lowbit_k2.runtime import Recogniser
from tests.egs.scripts import local_module
from tests.runtime.test_recogniser import packed_file

SCRIPT = "egs/an4/local/demo.py"


@pytest.fixture(scope="module")
def demo(repo_root: Path) -> dict:
    return vars(local_module(repo_root / "egs/an4/local", "demo"))


@pytest.mark.parametrize("mode", ["exact", "a16"])
def test_golden_words(mode: str, demo: dict, data_dir: Path) -> None:
    model, golden = demo["MODEL"], demo["GOLDEN"]
    if not model.exists():
        pytest.skip(f"{model} is not there yet")
    known = read_json(golden)
    assert known["sha256"] == sha256(model), f"another model: python {SCRIPT} --golden"
    found = demo["transcribe_all"](Recogniser.load(model, mode), demo["read_utterances"](data_dir / "an4"))
    assert {name: words for name, (words, _, _) in found.items()} == known["words"]


def test_no_speech_comes_with_the_model(demo: dict) -> None:
    assert {path.suffix for path in demo["MODEL"].parent.iterdir()} == {".safetensors", ".json", ".md"}


def test_a_corpus_that_does_not_have_them(demo: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no AN4 at .*prepare.sh --stage 0 --stop-stage 0.*--corpus-dir"):
        demo["read_utterances"](tmp_path)
    (tmp_path / "etc").mkdir()
    for name, line in (("fileids", "an4test_clstk/x/an1-x-b"), ("transcription", "YES (an1-x-b)")):
        (tmp_path / f"etc/an4_test.{name}").write_text(f"{line}\n")
    audio = tmp_path / "wav/an4test_clstk/x/an1-x-b.wav"
    audio.parent.mkdir(parents=True)
    audio.touch()
    with pytest.raises(UserError, match="lacks some of an422-menk-b"):
        demo["read_utterances"](tmp_path)


def test_the_demo(demo: dict, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """An untrained model, which says something."""
    packed = packed_file(tmp_path, "bpe")
    flags = [SCRIPT, "--packed", str(packed), "--corpus-dir", str(data_dir / "an4")]
    monkeypatch.setattr(sys, "argv", flags)
    demo["main"]()
    *lines, errors, speed = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and errors.startswith("%WER ") and " / 12, " in errors
    assert speed.startswith("5.8 s of audio in ") and f"model of {packed.stat().st_size:,} bytes" in speed
    shutil.copy(demo["GOLDEN"], tmp_path)
    monkeypatch.setitem(demo["main"].__globals__, "GOLDEN", tmp_path / "golden.json")
    monkeypatch.setattr(sys, "argv", [*flags, "--golden"])
    demo["main"]()
    golden = read_json(tmp_path / "golden.json")
    assert golden["sha256"] == sha256(packed)
    assert golden["words"] == {line.split()[0]: line.split("heard  ")[1] for line in lines[::2]}
