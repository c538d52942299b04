"""What scripts that make rows of a table share: running others as one types them, and the choice of rows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
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


def chosen_rows(only: str, rows: Collection[str]) -> list[str]:
    """Names of rows, by commas.

    Raises:
      UserError: one is no row.
    """
    names = only.split(",")
    unknown = sorted(set(names) - set(rows))
    if unknown:
        raise UserError(f"--only {unknown[0]} is no row: choose of {', '.join(rows)}")
    return names
