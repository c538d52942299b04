"""Run scripts of the recipe and modules of the package, as one types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lowbit_k2.errors import UserError

RECIPE = Path(__file__).resolve().parents[1]


def run_script(*command: object) -> None:
    """A script, by its path from the recipe on, or `-m` and a module, with flags; its output is shown.

    Raises:
      UserError: it has failed.
    """
    named = list(map(str, command))
    script = named if named[0] == "-m" else [str(RECIPE / named[0]), *named[1:]]
    print(" ".join(script), flush=True)
    done = subprocess.run(
        [sys.executable, *script], check=False, env={**os.environ, "PYTHONPATH": str(RECIPE.parents[1])}
    )
    if done.returncode:
        raise UserError(f"{script[1] if named[0] == '-m' else named[0]} has failed: see its last line")
