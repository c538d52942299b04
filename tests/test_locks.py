"""One at a time: in threads of folders, across processes, and after a holder was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.locks import exclusive

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import sys, time
from pathlib import Path
from lowbit_k2.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys, time
from pathlib import Path
from lowbit_k2.errors import UserError
from lowbit_k2.locks import exclusive
lock, count, done = Path(sys.argv[1]), Path(sys.argv[2]), 0
while done < 40:
    try:
        with exclusive(lock):
            count.write_text(str(int(count.read_text()) + 1))
            done += 1
    except UserError:
        time.sleep(0.0005)
"""


def test_the_second_is_refused_and_the_file_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "exp/.lock"
    with exclusive(path):
        with pytest.raises(UserError, match=f"{path} is held by process {os.getpid()}, .*wait for it"), exclusive(path):
            pass
        with exclusive(tmp_path / "other/.lock"):
            pass
    assert not path.parent.exists(), "nothing came of it"
    with exclusive(path):
        pass


@pytest.mark.attack(repeat=True)
def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"held by process {process.pid},"), exclusive(path):
            pass
        process.send_signal(signal.SIGKILL)
    with exclusive(path):
        assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.attack(repeat=True)
def test_nobody_is_in_it_together(tmp_path: Path) -> None:
    """Four processes count to 40 each; the file of the lock comes and goes."""
    (tmp_path / "count").write_text("0")
    program = [sys.executable, "-c", COUNT, tmp_path / ".lock", tmp_path / "count"]
    processes = [subprocess.Popen(program, cwd=ROOT) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "160"


@pytest.mark.attack(repeat=True)
def test_prepare_twice_at_once(tmp_path: Path) -> None:
    """Of two at the same moment one works, the other says so in one line; whole recipes are in tests/egs."""
    script = tmp_path / "egs/x/prepare.sh"
    script.parent.mkdir(parents=True)
    (tmp_path / "lowbit_k2/recipe").mkdir(parents=True)
    library = ROOT / "lowbit_k2/recipe/prepare_lib.sh"
    script.write_text(f"set -eou pipefail\nsource {library}\nonly_one {tmp_path}/data --data-dir\nsleep 2\ntouch $1\n")
    with subprocess.Popen(["bash", script, tmp_path / "first"]) as first:
        time.sleep(0.5)
        second = subprocess.run(
            ["bash", script, tmp_path / "second"], capture_output=True, text=True, check=False, timeout=20
        )
    assert first.returncode == 0 and (tmp_path / "first").exists()
    assert second.returncode == 1 and not (tmp_path / "second").exists()
    assert second.stderr == (
        f"error: {tmp_path}/data is being prepared by another process: wait for it, or choose another --data-dir\n"
    )
