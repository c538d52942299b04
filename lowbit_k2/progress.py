"""Progress bars: one rule for all of them. A log is no terminal and gets none."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def bars_installed() -> bool:
    """Whether there is what draws bars: it is no part of the packed runtime."""
    return find_spec("tqdm") is not None


def progress_bar(items: Iterable[Any] | None = None, desc: str = "", *, quiet: bool = False, **options: Any) -> tqdm:
    """tqdm's bar on stderr, where that is a terminal.

    Args:
      items: what is gone through; None for a bar that `update` moves.
      quiet: no bar on a terminal either.
      options: as tqdm takes them (`total`, `unit`, `leave`, ...).
    """
    from tqdm import tqdm

    return tqdm(items, desc=desc, disable=True if quiet else None, **options)  # None: silent without a terminal
