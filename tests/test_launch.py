"""What happens before torch is imported: the interpreter, MKL's kernels, the allocator."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit_k2 import launch

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("info", "given", "wanted"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t\t: sse2 avx avx2 bmi2\n", {}, {"MKL_DEBUG_CPU_TYPE": "5"}),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx2 x\n", {"MKL_DEBUG_CPU_TYPE": "4"}, {"MKL_DEBUG_CPU_TYPE": "4"}),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: sse2 avx bmi2\n", {}, {}),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx avx2 avx512f\n", {}, {}),
        (None, {}, {}),
    ],
)
def test_mkl_kernels(
    info: str | None, given: dict, wanted: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if info is not None:
        path.write_text(info)
    monkeypatch.setattr(launch, "CPU_INFO", path)
    launch.choose_mkl_kernels(given)
    assert given == wanted


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        (
            "cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD: EPYC\n\nmodel name\t: x\n",
            "AMD: EPYC (family 25, model 1)",
        ),
        ("model name\t: One\n", "One"),
        ("Processor\t: ARM\nmodel\t\t: 1\n", ""),
        (None, ""),
    ],
)
def test_the_cpu_has_a_name(info: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(launch, "CPU_INFO", tmp_path / "cpuinfo")
    assert launch.cpu_name() == wanted


FAULTS = """
import resource, sys
from lowbit_k2.launch import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def use():
    block = libc.malloc(64 << 20)
    libc.memset(block, 1, 64 << 20)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept() -> None:
    """A block that was freed and is asked for again costs no page faults, where glibc would map 16384 pages anew."""
    found = {}
    for mode in ("keep", "default"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, mode], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found[mode] = int(done.stdout)
    assert found["keep"] < 100 and found["keep"] <= found["default"], found


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.ctypes, "CDLL", lambda name: object())
    launch.keep_freed_memory()


def test_no_torch_and_no_environment_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="error: PyTorch is not installed: run `make venv`"):
        launch.use_project_interpreter()


IMPORTING = """
import time
from lowbit_k2.launch import use_project_interpreter
use_project_interpreter()
print("importing", flush=True)
time.sleep(60)
"""


def test_ctrl_c_while_a_script_imports() -> None:
    program = [sys.executable, "-c", IMPORTING]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(program, **pipes) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (130, "error: interrupted\n")
