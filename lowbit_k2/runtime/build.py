"""Build the shared library from native/*.cpp where a C++ compiler exists, once per change of the sources.

The library lies in a cache: LOWBIT_K2_CACHE, or lowbit_k2 below XDG_CACHE_HOME or ~/.cache. Its name holds a hash of
all that it is made from, so that no version is taken for another, and it appears complete or not at all. A wheel brings
one in prebuilt/, which is taken where its hash is that of the sources. Python's own library is enough for this file:
setup.py runs it before anything is installed, and `python lowbit_k2/runtime/build.py` builds for the cache. The
recogniser for programs in C, in embedded/, is no part of this library: a Makefile there builds it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

NATIVE = Path(__file__).resolve().parent / "native"
PREBUILT = NATIVE.parent / "prebuilt"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread")
# Of a wheel's library: with the C++ library within, and of that nothing in vain, which would ask for a newer C library.
STATIC = ("-static-libstdc++", "-Wl,--gc-sections", "-Wl,--exclude-libs,ALL")
# Without those of UBSan's checks that AddressSanitizer makes superfluous: they double the compiler's time.
CHECKS = "address,signed-integer-overflow,shift,bounds,integer-divide-by-zero,float-cast-overflow,unreachable,return"
# Its own by calls: written out, they take the compiler half as long again.
CALLS = ("--param", "asan-instrumentation-with-call-threshold=0")
SANITIZE = ("-g1", "-O0", "-std=c++17", "-pthread", f"-fsanitize={CHECKS}", "-fno-sanitize-recover=all", *CALLS)
COMMON = ("pool", "isa", "repack", "matmul", "layers", "lstm", "kernels_portable", "layers_portable")
# Units that are compiled for more than the least CPU of the machine's kind; run-time dispatch chooses among them. A
# compiler that does not know the flags of one leaves an empty unit.
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512")
AVX512_VNNI = (*AVX512, "-mavx512vnni")
NEON = {
    "kernels_neon": (),
    "kernels_neondot": ("-march=armv8.2-a+dotprod",),
    "kernels_i8mm": ("-march=armv8.2-a+dotprod+i8mm",),
}
BY_MACHINE = {
    "aarch64": NEON,
    "arm64": NEON,  # as macOS says
    "x86_64": {
        "kernels_avx2": AVX2,
        "kernels_avxvnni": (*AVX2, "-mavxvnni"),
        "layers_avx2": AVX2,
        "layers_avx512": AVX512,
        "kernels_avx512vnni": AVX512_VNNI,
        "floats_amx": (*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
        "kernels_amx": (*AVX512_VNNI, "-mgfni", "-mamx-tile", "-mamx-int8"),
    },
}


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


def units(machine: str = platform.machine()) -> dict[str, tuple[str, ...]]:
    """Translation units of a kind of machine, and the flags that each needs beside the common ones."""
    return {**dict.fromkeys(COMMON, ()), **BY_MACHINE.get(machine, {})}


def known_flags(program: str, flags: tuple[str, ...]) -> tuple[str, ...]:
    """The flags, or none if the compiler knows not all of them."""
    if not flags:
        return flags
    command = [program, *flags, "-E", "-x", "c++", os.devnull]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return () if done.returncode else flags


def kernels(machine: str = platform.machine()) -> dict[Path, tuple[str, ...]]:
    """The library's sources, and the flags that each needs, as far as the compiler knows them.

    Raises:
      BuildError: no compiler.
    """
    program = compiler()
    return {NATIVE / f"{name}.cpp": known_flags(program, own) for name, own in units(machine).items()}


def build(
    target: Path,
    sources: Mapping[Path, Sequence[str]],
    flags: Sequence[str] = FLAGS,
    shared: bool = True,
    upon: Sequence[Path] = (),
) -> None:
    """Compile sources, as many at a time as there are CPUs, and link them.

    Args:
      target: the shared library, or the program where `shared` is false; replaced as a whole.
      sources: with the flags that each needs beside the common ones.
      upon: libraries that it needs.
    Raises:
      BuildError: no compiler, one that fails, or a folder that cannot be written.
    """
    program = compiler()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as folder:
            objects = {source: Path(folder) / f"{source.stem}.o" for source in sources}
            _run_all([program, *flags, *own, f"-I{NATIVE}", "-c", str(source), "-o", str(objects[source])]
                     for source, own in sources.items())  # fmt: skip
            linked = Path(folder) / "linked"
            how = ("-shared",) if shared else ()
            _run_all([[program, *flags, *how, *map(str, [*objects.values(), *upon]), "-o", str(linked)]])
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
    path = cache_folder() / library_name(compiler())
    if not path.is_file():
        build(path, kernels())
    return path


def library_name(*more: str) -> str:
    """A name with a hash of the sources, of how they are compiled, and of `more`."""
    digest = hashlib.sha256(repr((*more, FLAGS, units(), platform.machine())).encode())
    for path in sorted(NATIVE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"runtime-{digest.hexdigest()[:16]}.so"


def prebuilt_library() -> Path | None:
    """The library that a wheel has brought; None where there is none, or it is not of these sources."""
    path = PREBUILT / library_name()
    return path if path.is_file() else None


def build_for_wheel(folder: Path) -> Path:
    """Make what `prebuilt_library` finds, in a folder that will be PREBUILT elsewhere.

    Raises:
      BuildError: no compiler, one that fails, or a folder that cannot be written.
    """
    path = folder / library_name()
    build(path, kernels(), (*FLAGS, *STATIC))
    return path


if __name__ == "__main__":
    try:
        print(library_path())
    except BuildError as error:
        sys.exit(f"error: the packed runtime's library cannot be built: {error}")
