"""docs/adding-a-recipe.md is true: its scripts run, its commands have the flags that it gives them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from lowbit_k2.train.checkpoint import load_checkpoint
from tests.egs.scripts import AN4, ROOT, Flag, call, spawn

DOC = ROOT / "docs/adding-a-recipe.md"


def block(language: str) -> str:
    [code] = re.findall(rf"```{language}\n(.*?)```", DOC.read_text(), flags=re.DOTALL)
    return code


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The folder of a new recipe, with the document's scripts, in a tree with the library."""
    folder = tmp_path / "egs/new"
    folder.mkdir(parents=True)
    (tmp_path / "lowbit_k2").symlink_to(ROOT / "lowbit_k2")
    (folder / "local").symlink_to(AN4 / "local")
    (folder / "prepare.sh").write_text(block("bash"))
    (folder / "prepare.sh").chmod(0o755)
    (folder / "train.py").write_text(
        "import sys\nfrom pathlib import Path\n\n" + block("python").replace("NAME", "an4")
    )
    return folder


def test_the_scripts_run(recipe: Path, an4_corpus: Path, an4_training: list[Flag], tmp_path: Path) -> None:
    flags = ["--corpus-dir", an4_corpus, "--data-dir", tmp_path / "data"]
    spawn(recipe / "prepare.sh", *flags).good()
    assert (tmp_path / "data/manifests/an4_recordings_train.jsonl.gz").is_file()
    assert "Skipped, done before" in spawn(recipe / "prepare.sh", *flags).good().out
    call(recipe / "train.py", *an4_training, "--exp-dir", tmp_path / "exp", "--num-epochs", 1).good()
    assert load_checkpoint(tmp_path / "exp/epoch-1.pt").meta["flags"]["model"] == "small"


def test_the_commands_of_the_stages_have_these_flags() -> None:
    commands = re.findall(r"`python -m (lowbit_k2\.recipe\.\w+) ([^`]+)`", DOC.read_text())
    assert len(commands) == 5
    for module, flags in commands:
        known = importlib.import_module(module).get_parser().format_help()
        for flag in re.findall(r"--[a-z-]+", flags):
            assert re.search(rf"{flag}\b", known), (module, flag)


def test_the_files_that_it_names_exist() -> None:
    text = DOC.read_text()
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DOC.parent / path).is_file(), path
    for name in re.findall(r"`(tests/\S+?|egs/\w+)`", text):
        assert (ROOT / name).exists(), name
