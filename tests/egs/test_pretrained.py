"""The model that comes with the project says the words that are written down, and its demo runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from lowbit_k2.fileio import read_json, sha256
from lowbit_k2.runtime import Recogniser
from tests.runtime.packages import needs_fbank
from tests.runtime.test_recogniser import packed_file

pytestmark = needs_fbank
SCRIPT = "egs/an4/local/demo.py"
MOST_BYTES = 100_000  # of recordings


@pytest.fixture(scope="module")
def demo(repo_root: Path) -> dict:
    return runpy.run_path(str(repo_root / SCRIPT))


@pytest.mark.parametrize("mode", ["exact", "a16"])
def test_golden_words(mode: str, demo: dict) -> None:
    model, golden = demo["MODEL"], demo["GOLDEN"]
    if not model.exists():
        pytest.skip(f"{model} is not there yet")
    known = read_json(golden)
    assert known["sha256"] == sha256(model), f"another model: python {SCRIPT} --golden"
    found = demo["transcribe_all"](Recogniser.load(model, mode))
    assert {name: words for name, (words, _, _) in found.items()} == known["words"]


def test_recordings(demo: dict) -> None:
    folder, names = demo["PRETRAINED"], set(demo["references"]())
    recordings = list(folder.glob("*.flac"))
    assert {path.stem for path in recordings} == names
    assert sum(path.stat().st_size for path in recordings) < MOST_BYTES
    assert "Carnegie Mellon University" in (folder / "LICENSE.an4").read_text()


def test_the_demo(demo: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """An untrained model, which says something."""
    packed = packed_file(tmp_path, "bpe")
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--packed", str(packed)])
    demo["main"]()
    *lines, errors, speed = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and errors.startswith("%WER ") and " / 12, " in errors
    assert speed.startswith("5.8 s of audio in ") and f"model of {packed.stat().st_size:,} bytes" in speed
    monkeypatch.setitem(demo["main"].__globals__, "GOLDEN", tmp_path / "golden.json")
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--packed", str(packed), "--golden"])
    demo["main"]()
    golden = read_json(tmp_path / "golden.json")
    assert golden["sha256"] == sha256(packed)
    assert golden["words"] == {line.split()[0]: line.split("heard  ")[1] for line in lines[::2]}
