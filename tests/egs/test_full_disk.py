"""decode.py and export.py on a disk that is really full: a file system of its own, in a namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.egs.scripts import AN4, Flag, Run, spawn

pytestmark = pytest.mark.attack

# Mount, copy the model, fill up but for some bytes, run the command there, and list what it left.
ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=16m tmpfs "$1"
cd "$1"
cp -r "$2" exp
head -c "$3" /dev/zero >room
shift 3
cat /dev/zero >fill 2>/dev/null || true
rm room
status=0
"$@" || status=$?
find . -type f -printf '%P %s\\n' | sort >"$LEFT"
exit $status
"""


@pytest.fixture(scope="module", autouse=True)
def may_mount() -> None:
    done = subprocess.run(["unshare", "-rm", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {done.stderr.strip()}")


def on_a_small_disk(folder: Path, exp: Path, room: int, *command: Flag) -> tuple[Run, dict[str, int]]:
    """What a command did on a disk with `room` bytes left, and the sizes of the files there afterwards."""
    disk, left = folder / "disk", folder / "left.txt"
    disk.mkdir()
    shell = ["unshare", "-rm", "bash", "-c", ON_A_SMALL_DISK, "bash", disk, exp]
    run = spawn(*shell, room, sys.executable, *command, cwd=folder, LEFT=str(left))
    lines = left.read_text().splitlines()
    return run, {name: int(size) for name, _, size in (line.rpartition(" ") for line in lines)}


@pytest.fixture
def exp(talkative_exp: Path, tmp_path: Path) -> Path:
    """A model without what other tests have made of it."""
    (tmp_path / "model").mkdir()
    shutil.copy(talkative_exp / "epoch-1.pt", tmp_path / "model")
    return tmp_path / "model"


# pages of 4 kB: none at all; the first results, but not all; enough
@pytest.mark.parametrize(("room", "fits"), [(0, False), (32_768, False), (400_000, True)])
def test_decoding(an4_data: Path, exp: Path, tmp_path: Path, room: int, fits: bool) -> None:
    data = ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_char"]
    flags = ["--epoch", 1, "--precision", 2, 1, "--test-sets", "dev,test"]
    run, left = on_a_small_disk(tmp_path, exp, room, AN4 / "decode.py", "--exp-dir", "exp", *flags, *data)
    results = {name for name in left if "/recogs-" in name and name.endswith(".txt")}
    if fits:
        assert run.good() and len(results) == 4
        return
    line = run.error()
    assert "exp/" in line and "No space left on device" in line
    assert len(results) < 4 and all(left[name] > 0 for name in results)
    assert not [name for name in left if ".tmp" in name or "unfinished" in name]
    assert left["exp/epoch-1.pt"] == (exp / "epoch-1.pt").stat().st_size
    assert len([part for part in run.out.splitlines() if "%WER" in part]) >= len(results)


@pytest.mark.parametrize("room", [0, 4096])
def test_export(exp: Path, tmp_path: Path, room: int) -> None:
    flags = ["--exp-dir", "exp", "--epoch", 1, "--precision", 1, "--output", "exp/1bit.safetensors"]
    run, left = on_a_small_disk(tmp_path, exp, room, AN4 / "export.py", *flags)
    line = run.error()
    assert "1bit.safetensors" in line and "No space left on device" in line
    assert not [name for name in left if "1bit" in name]
