"""Training that is killed at any moment, or has no room left on the disk, goes on where it was."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lowbit_k2.train.checkpoint import load_checkpoint
from lowbit_k2.train.trainer import LoopConfig, newest_checkpoint
from tests.train.toy import run_epochs, toy_trainer

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 6
LOOP = LoopConfig(num_epochs=EPOCHS, save_every_n=1, average_period=1, tensorboard=False)  # writes most of the time
PROGRAM = """
import sys
from pathlib import Path
from tests.train.test_killed import EPOCHS, LOOP
from tests.train.toy import run_epochs, toy_trainer
from lowbit_k2.train.trainer import newest_checkpoint

folder = Path(sys.argv[1])
trainer = toy_trainer(folder, loop=LOOP)
newest = newest_checkpoint(folder)
if newest is not None:
    trainer.resume(newest)
print("started", flush=True)
run_epochs(trainer, EPOCHS)
print("finished", flush=True)
"""


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.attack(repeat=True)
def test_killed_at_random_points(tmp_path: Path) -> None:
    """The checkpoint at the end is that of a run which nothing happened to."""
    run_epochs(toy_trainer(tmp_path / "whole", loop=LOOP), EPOCHS)
    folder, rng, kills = tmp_path / "killed", random.Random(time.time_ns()), 0
    folder.mkdir()
    for longest in (0.2, 0.4, 0.8):  # seconds; all six epochs take about two
        process = start(folder)
        assert process.stdout.readline() == "started\n"
        delay = rng.uniform(0, longest)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        newest = newest_checkpoint(folder)  # loads every candidate: none is half-written
        print(f"killed {delay:.3f} s after the start, at {newest}")
    assert kills, "the run was over too soon to be killed"
    out, _ = start(folder).communicate()
    assert out.split() == ["started", "finished"]
    whole, parts = (load_checkpoint(tmp_path / name / f"epoch-{EPOCHS}.pt") for name in ("whole", "killed"))
    for section in ("model", "optimizer", "model_avg"):
        first, second = getattr(whole, section), getattr(parts, section)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from lowbit_k2.errors import run_main
from tests.train.toy import run_epochs, toy_trainer

def main():
    trainer = toy_trainer(Path(sys.argv[1]))
    run_epochs(trainer, 1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write over the limit is an error, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    run_epochs(trainer, 2)

run_main(main)
"""


@pytest.mark.attack(repeat=True)
@pytest.mark.parametrize("room", [0, 20_000])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, room: int) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "exp"), str(room)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and ".pt cannot be written" in last and "can go on later" in last
    assert sorted(path.name for path in (tmp_path / "exp").iterdir()) == ["best-valid-loss.pt", "epoch-1.pt"]
    whole = toy_trainer(tmp_path / "whole")
    run_epochs(whole, 2)
    resumed = toy_trainer(tmp_path / "exp")
    resumed.resume(newest_checkpoint(tmp_path / "exp"))
    run_epochs(resumed, 2)
    states = [load_checkpoint(tmp_path / name / "epoch-2.pt").model for name in ("whole", "exp")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
