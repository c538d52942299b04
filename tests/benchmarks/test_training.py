"""The benchmark of an update, whose own loop stands in for a `Trainer`, runs through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("objective", ["ctc", pytest.param("rnnt", marks=pytest.mark.k2)])
def test_a_run_prints_times_and_memory(repo_root: Path, objective: str) -> None:
    flags = ["--model", "demo", "--frames", "60", "--utterances", "2", "--repeats", "1", "--precisions", "2,1"]
    command = [sys.executable, "benchmarks/training.py", *flags, "--objective", objective]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cells = done.stdout.splitlines()[-1].split()
    assert cells[:4] == [objective, "2", "2,1", "2"]
    assert min(float(cell.rstrip("%")) for cell in cells[4:]) > 0, cells
