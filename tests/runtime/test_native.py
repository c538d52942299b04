"""The library from outside: forced instructions, no compiler, the cache, forks, sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.runtime import build, matmul
from lowbit_k2.runtime.build import SANITIZE, BuildError
from lowbit_k2.runtime.reference import reference_matmul
from tests.runtime.tensors import random_rows, random_tensor, relative_error

KERNELS_TEST = Path(__file__).with_name("kernels_test.cpp")
QUICK = ("-O1", "-std=c++17", "-pthread")  # to compile
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")

PROGRAM = """
import numpy as np
from lowbit_k2.packed import PackedTensor
from lowbit_k2.runtime import isa_in_use, matmul
tensor = PackedTensor.from_codes("w", "", "binary", np.ones((3, 70), np.int8), np.float32(0.5))
print(isa_in_use(), matmul(tensor, np.ones((2, 70), np.float32), "a8").tolist() == [[35.0] * 3] * 2)
"""


def run(repo_root: Path, program: str = PROGRAM, **environment: str) -> tuple[str, str]:
    """stdout and stderr of a fresh Python."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=repo_root, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.stdout.strip(), done.stderr.strip()


def test_the_environment_forces_instructions(native, repo_root: Path) -> None:
    for name in ("portable", "numpy"):
        assert run(repo_root, LOWBIT_K2_ISA=name) == (f"{name} True", "")
    out, error = run(repo_root, LOWBIT_K2_ISA="mmx")
    assert out == "" and error.splitlines()[-1].startswith(
        "lowbit_k2.errors.UserError: LOWBIT_K2_ISA: instructions mmx: unknown: take one of portable, "
    )


def test_without_a_compiler_numpy_multiplies(repo_root: Path, tmp_path: Path) -> None:
    out, error = run(repo_root, PATH=str(tmp_path), CXX="", LOWBIT_K2_CACHE=str(tmp_path))
    assert out == "numpy True"
    assert error == (
        "packed weights are multiplied by numpy, which is slow: no C++ compiler is installed "
        "(g++ or clang++; CXX names another)"
    )


def test_a_compiler_that_fails_says_so(repo_root: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    out, error = run(repo_root, CXX=str(compiler), LOWBIT_K2_CACHE=str(tmp_path / "cache"))
    assert out == "numpy True"
    assert error.endswith("which is slow: the C++ compiler fails: x.cpp:1: error: no such thing")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, native, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWBIT_K2_CACHE", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="LOWBIT_K2_CACHE"):
        build.library_path()


def test_the_library_is_built_once(native) -> None:
    path = build.library_path()
    before = path.stat().st_mtime_ns
    assert build.library_path() == path and path.stat().st_mtime_ns == before


def test_numpy_gives_what_the_library_gives(native, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, x = random_tensor("int4", 30, 100), random_rows(3, 100)
    found = matmul(tensor, x, "a8")
    monkeypatch.setattr("lowbit_k2.runtime.matrix.library", lambda: None)
    again = random_tensor("int4", 30, 100)
    assert (matmul(again, x, "a8") == reference_matmul(again, x, "a8")).all()
    assert relative_error(found, matmul(again, x, "a8")) < 1e-6


def test_a_child_by_fork_has_threads_of_its_own(native) -> None:
    tensor, x = random_tensor("binary", 400, 800), random_rows(40, 800)
    expected = matmul(tensor, x, "a8", threads=3)
    child = os.fork()
    if not child:
        same = np.array_equal(matmul(tensor, x, "a8", threads=3), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_heavy_is_loaded(repo_root: Path) -> None:
    program = "import lowbit_k2.runtime, sys; print({'torch', 'k2', 'lhotse', 'onnxruntime'} & set(sys.modules))"
    assert run(repo_root, program) == ("set()", "")


def check_kernels(*command: object) -> str:
    """What the program of kernels_test.cpp prints, all being right."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "products" in done.stdout
    return done.stdout


def kernels_test(flags: Sequence[str], machine: str = platform.machine()) -> Path:
    """The program, compiled with the library's sources once per change of any: that takes a minute with sanitizers."""
    name = build.library_name(build.compiler(), *flags, repr(build.units(machine)), KERNELS_TEST.read_text())
    path = build.cache_folder() / f"kernels-test-{Path(name).stem}"
    if not path.is_file():
        build.build(path, {**build.kernels(machine), KERNELS_TEST: ()}, flags, shared=False)
    return path


@pytest.mark.one_lane
def test_kernels_by_the_c_interface(native, tmp_path: Path) -> None:
    """Built against the shared library, as a program in C++ would be."""
    program, library = tmp_path / "kernels_test", build.library_path()
    sources = [f"-I{build.NATIVE}", str(KERNELS_TEST), str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([build.compiler(), *QUICK, *sources, "-o", str(program)], check=True)
    check_kernels(program)


@pytest.mark.one_lane
def test_kernels_under_sanitizers(native) -> None:
    check_kernels(kernels_test(SANITIZE))


@pytest.mark.one_lane
def test_the_pool_under_the_thread_sanitizer(native, tmp_path: Path) -> None:
    program, sources = tmp_path / "pool_test", (KERNELS_TEST.with_name("pool_test.cpp"), build.NATIVE / "pool.cpp")
    flags = ("-O1", "-g", "-std=c++17", "-pthread", "-fsanitize=thread", f"-I{build.NATIVE}")
    subprocess.run([build.compiler(), *flags, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "6000 jobs\n"), done.stderr[-3000:]


@pytest.mark.one_lane
def test_kernels_on_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for 64-bit ARM, on an emulated CPU that has all instructions, and on one with the least."""
    for tool, package in ((ARM_COMPILER, "g++-aarch64-linux-gnu"), (ARM_EMULATOR[0], "qemu-user")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian's {package})")
    monkeypatch.setenv("CXX", ARM_COMPILER)
    program = kernels_test(QUICK, "aarch64")
    with ThreadPoolExecutor() as pool:
        best = pool.submit(check_kernels, *ARM_EMULATOR, "-cpu", "max", program, "neon", "neondot", "i8mm")
        least = check_kernels(*ARM_EMULATOR, "-cpu", "cortex-a72", program, "neon")
        assert "neondot not tested: this CPU lacks it" in least and "not tested: this CPU" not in best.result()
