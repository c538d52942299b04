"""docs/adding-a-recipe.md is true: its scripts run, its commands have the flags that it gives them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from lowbit_k2.train.checkpoint import load_checkpoint
from tests.egs.scripts import AN4, ROOT, Flag, call, spawn

DOC = ROOT / "docs/adding-a-recipe.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC.read_text(), flags=re.DOTALL)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The folder of a new recipe, with the document's scripts, in a tree with the library."""
    folder = tmp_path / "egs/new"
    folder.mkdir(parents=True)
    (tmp_path / "lowbit_k2").symlink_to(ROOT / "lowbit_k2")
    (tmp_path / "egs/an4").symlink_to(AN4)
    (folder / "local").symlink_to(AN4 / "local")
    stages, train = blocks("bash")
    (folder / "prepare.sh").write_text(stages)
    (folder / "prepare.sh").chmod(0o755)
    spawn("bash", "-c", train.replace("NAME", "an4"), cwd=folder).good()
    return folder


def test_the_scripts_run(recipe: Path, an4_corpus: Path, an4_training: list[Flag], tmp_path: Path) -> None:
    flags = ["--corpus-dir", an4_corpus, "--data-dir", tmp_path / "data"]
    spawn(recipe / "prepare.sh", *flags).good()
    assert (tmp_path / "data/manifests/an4_recordings_train.jsonl.gz").is_file()
    assert "Skipped, done before" in spawn(recipe / "prepare.sh", *flags).good().out
    call(recipe / "train.py", *an4_training, "--exp-dir", tmp_path / "exp", "--num-epochs", 1).good()
    assert load_checkpoint(tmp_path / "exp/epoch-1.pt").meta["update"] > 1


CHANGES = {  # of a line of train.py, in the order of the document
    "penalty_1": "        criterion=",
    "loss_mix": "        co_training=",
    "stacked": "    model_config = ",
    "learning rate": "        schedule=",
}


@pytest.mark.parametrize("number", range(len(CHANGES)), ids=list(CHANGES))
def test_one_thing_is_changed(number: int, recipe: Path, an4_training: list[Flag], tmp_path: Path) -> None:
    (shown, start), code = list(CHANGES.items())[number], blocks("python")[number]
    lines = re.findall(r"^`([^`]+)`$", DOC.read_text(), flags=re.MULTILINE)
    script = (recipe / "train.py").read_text()
    [old] = [line for line in script.splitlines() if line.startswith(start)]
    new = old[: len(old) - len(old.lstrip())] + lines[number]
    assert new.startswith(start)
    changed = script.replace(old, new).replace("def make_trainer", f"{code}\n\ndef make_trainer")
    (recipe / "train.py").write_text(changed)
    exp, more = tmp_path / "exp", ["--num-epochs", 1, "--tensorboard", "false", "--log-interval", 1]
    call(recipe / "train.py", *an4_training, "--exp-dir", exp, *more).good()
    [log] = (exp / "log").iterdir()
    checkpoint = load_checkpoint(exp / "epoch-1.pt")
    if shown == "stacked":
        assert checkpoint.meta["model"]["encoder"]["kind"] == "stacked"
    elif shown == "learning rate":
        rates = [float(rate) for rate in re.findall(r"update \d+: .*learning_rate=(\S+)", log.read_text())]
        total = len(rates)
        assert total > 10
        assert rates == pytest.approx(
            [2e-3 * min((n + 1) / 10, (1 - n / total) ** 2) for n in range(total)], rel=1e-2, abs=1e-8
        )
    else:
        assert f"{shown}=" in log.read_text()


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
