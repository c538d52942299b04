"""How often an attack is tried: a little in `make test`, more by hand with LOWBIT_K2_TRIALS=20 (a factor)."""

from __future__ import annotations

import os


def trials(number: int) -> range:
    return range(number * int(os.environ.get("LOWBIT_K2_TRIALS", "1")))
