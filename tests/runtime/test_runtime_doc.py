"""The Python of docs/runtime.md runs, and its flags are those of the command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowbit_k2.cli import get_parser
from tests.runtime.packages import needs_fbank
from tests.runtime.test_recogniser import packed_file, write_sound


@needs_fbank
def test_the_example(tmp_path: Path, repo_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    examples = re.findall(r"```python\n(.*?)```", (repo_root / "docs/runtime.md").read_text(), re.DOTALL)
    packed_file(tmp_path, "bpe").rename(tmp_path / "1bit.safetensors")
    write_sound(tmp_path / "speech.wav", 2.0)
    monkeypatch.chdir(tmp_path)
    for example in examples:
        exec(example, {})
    assert len(examples) == 2 and capsys.readouterr().out.strip()


def test_the_flags(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (repo_root / "docs/runtime.md").read_text()
    with pytest.raises(SystemExit):
        get_parser().parse_args(["transcribe", "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    own = re.sub(r"`benchmarks/[^`]*`", "", page)  # their flags are not transcribe's
    named = set(re.findall(r"--[a-z][a-z-]+", own))
    assert named and named <= known
