"""Build the shared library from native/*.cpp where a C++ compiler exists, once per change of the sources.

The library lies in a cache: LOWBIT_K2_CACHE, or lowbit_k2 below XDG_CACHE_HOME or ~/.cache. Its name holds a hash of
all that it is made from, so that no version is taken for another, and it appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

NATIVE = Path(__file__).resolve().parent / "native"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread")
SANITIZE = ("-g1", "-O0", "-std=c++17", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
COMMON = (
    "pool",
    "isa",
    "repack",
    "matmul",
    "layers",
    "lstm",
    "kernels_portable",
    "refusal",
    "sha256",
    "inflate",
    "json",
)
COMMON += ("tensors", "packed_file", "settings", "fbank", "units", "network", "search", "recogniser")
# Units that are compiled for more than the least CPU of the machine's kind; run-time dispatch chooses among them.
BY_MACHINE = {"x86_64": {"kernels_avx2": ("-mavx2", "-mfma")}}


class BuildError(Exception):
    """No library can be built here; the text is one line."""


def compiler() -> str:
    """Path of the C++ compiler: CXX, g++ or clang++.

    Raises:
      BuildError: there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise BuildError("no C++ compiler is installed (g++ or clang++; CXX names another)")


def units() -> dict[str, tuple[str, ...]]:
    """Translation units and the flags that each needs beside the common ones."""
    return {**dict.fromkeys(COMMON, ()), **BY_MACHINE.get(platform.machine(), {})}


def build(target: Path, flags: Sequence[str] = FLAGS, extra: Sequence[Path] = (), shared: bool = True) -> None:
    """Compile all units, as many at a time as there are CPUs, and link them.

    Args:
      target: the shared library, or the program where `shared` is false; replaced as a whole.
      extra: further sources, of a program.
    Raises:
      BuildError: no compiler, one that fails, or a folder that cannot be written.
    """
    program = compiler()
    sources = {NATIVE / f"{name}.cpp": own for name, own in units().items()} | dict.fromkeys(extra, ())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as folder:
            objects = {source: Path(folder) / f"{source.stem}.o" for source in sources}
            _run_all([program, *flags, *own, f"-I{NATIVE}", "-c", str(source), "-o", str(objects[source])]
                     for source, own in sources.items())  # fmt: skip
            linked = Path(folder) / "linked"
            how = ("-shared",) if shared else ()
            _run_all([[program, *flags, *how, *map(str, objects.values()), "-o", str(linked)]])
            os.replace(linked, target)
    except OSError as error:
        where = error.filename or target
        raise BuildError(f"{where}: {error.strerror or error}: name another folder by LOWBIT_K2_CACHE") from None


def _run_all(commands) -> None:
    """Run compilers side by side; the first that fails ends the build, with its first error."""
    waiting, running = list(commands), []
    failed = None
    while waiting or running:
        while waiting and not failed and len(running) < (os.cpu_count() or 1):
            running.append(
                subprocess.Popen(waiting.pop(0), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
        if failed:
            waiting.clear()
        if running:
            process = running.pop(0)
            output = process.communicate()[0]
            if process.returncode and not failed:
                lines = output.strip().splitlines() or [f"exit status {process.returncode}"]
                failed = next((line for line in lines if "error" in line), lines[0])
    if failed:
        raise BuildError(f"the C++ compiler fails: {failed}")


def cache_folder() -> Path:
    """Where libraries are kept."""
    named = os.environ.get("LOWBIT_K2_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowbit_k2"


def library_path() -> Path:
    """The library of these sources, built if it is not there yet.

    Raises:
      BuildError: it cannot be built.
    """
    digest = hashlib.sha256(repr((compiler(), FLAGS, units(), platform.machine())).encode())
    for path in sorted(NATIVE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    path = cache_folder() / f"runtime-{digest.hexdigest()[:16]}.so"
    if not path.is_file():
        build(path)
    return path
