"""Recipes have modules of the same names; tests of several recipes share a process."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from tests.egs.scripts import ROOT, call, local_module

RECIPES = ("an4", "switchboard", "yoruba")


@pytest.mark.parametrize("order", list(permutations(RECIPES)))
def test_each_recipe_gets_its_own_modules(order: tuple[str, ...]) -> None:
    for recipe in order:
        folder = ROOT / "egs" / recipe / "local"
        assert Path(local_module(folder, "prepare_manifests").__file__) == folder / "prepare_manifests.py"


def test_a_script_that_is_run_gets_its_own_neighbours() -> None:
    local_module(ROOT / "egs/switchboard/local", "prepare_manifests")
    run = call(ROOT / "egs/an4/local/demo.py", "--corpus-dir", "/nowhere")  # it takes Utterance from its neighbour
    assert "no AN4 at /nowhere" in run.error()
