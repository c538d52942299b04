"""Scripts run straight after `make venv`: outside any environment they go on under the repository's own `.venv`."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import sys
from collections.abc import MutableMapping
from pathlib import Path

from lowbit_k2.errors import end_interrupted

ROOT = Path(__file__).resolve().parent.parent
CPU_INFO = Path("/proc/cpuinfo")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
MIB = 2**20


def use_project_interpreter() -> None:
    """Replace this process by the same script under `.venv`, if this Python has no torch and `.venv` exists.

    Call it before the first import that needs an installed package: it also makes the settings of the process that
    torch's libraries read when they are loaded. Ctrl-C during those imports, which take seconds, ends in one line.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # until `run_main` takes over
        signal.signal(signal.SIGINT, end_interrupted)
    if importlib.util.find_spec("torch") is not None:
        choose_mkl_kernels(os.environ)
        keep_freed_memory()
        return
    python = ROOT / ".venv" / "bin" / "python"
    if not python.is_file() or Path(sys.prefix) == ROOT / ".venv":
        sys.exit("error: PyTorch is not installed: run `make venv`, or activate an environment with requirements.txt")
    os.execv(python, [str(python), *sys.argv])


def choose_mkl_kernels(environ: MutableMapping[str, str]) -> None:
    """Let the MKL of torch 1.13 use its AVX2 kernels on AMD's CPUs; what the user has set is left.

    MKL 2020.0 looks at the maker's name and takes SSE kernels on all others: matrix products then run at a third of
    their speed. Later releases of MKL choose by what the CPU can do and ignore the variable.
    """
    info = cpu_info()
    if "AuthenticAMD" in info and " avx2 " in info:
        environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def cpu_info() -> str:
    """What Linux tells about the CPUs; nothing on other systems."""
    try:
        return CPU_INFO.read_text()
    except OSError:
        return ""


def cpu_name() -> str:
    """Name, family and model of the first CPU, since some names stand for several generations; "" if not known."""
    told = [line.split(":", 1) for line in cpu_info().split("\n\n")[0].splitlines() if ":" in line]
    found = {key.strip(): value.strip() for key, value in told}
    numbers = [f"{key.split()[-1]} {found[key]}" for key in ("cpu family", "model") if key in found]
    name = found.get("model name", "")
    return f"{name} ({', '.join(numbers)})" if name and numbers else name


def keep_freed_memory() -> None:
    """Keep freed memory in the process, where glibc would hand it back to the system at each update.

    Activations are allocated anew in every pass. Clearing their pages took a tenth of a small model's training, and up
    to a quarter of a large one's, whose blocks are large. In return the peak may be a tenth higher (both as
    benchmarks/training.py gives them for `paper`).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap, too
    mallopt(M_TRIM_THRESHOLD, -1)  # never
    mallopt(M_TOP_PAD, 64 * MIB)
