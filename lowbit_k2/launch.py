"""Scripts run straight after `make venv`: outside any environment they go on under the repository's own `.venv`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def use_project_interpreter() -> None:
    """Replace this process by the same script under `.venv`, if this Python has no torch and `.venv` exists.

    Call it before the first import that needs an installed package.
    """
    if importlib.util.find_spec("torch") is not None:
        return
    python = ROOT / ".venv" / "bin" / "python"
    if not python.is_file() or Path(sys.prefix) == ROOT / ".venv":
        sys.exit("error: PyTorch is not installed: run `make venv`, or activate an environment with requirements.txt")
    os.execv(python, [str(python), *sys.argv])
