"""The one place that knows about k2 versions, and the one message for machines without k2."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

from lowbit_k2.errors import UserError


def has_k2() -> bool:
    """True where a k2 package is installed (it may still fail to import: see `require_k2`)."""
    return importlib.util.find_spec("k2") is not None


def require_k2() -> ModuleType:
    """Import and return k2.

    Raises:
      UserError: k2 is missing or its binaries do not fit this Python and torch.
    """
    try:
        import k2
    except (ImportError, OSError) as error:
        reason = "is not installed" if not has_k2() else f"cannot be imported ({error})"
        raise UserError(
            f"k2 {reason}: run make venv (Python 3.10, torch 1.13.1, requirements-k2.txt), or install a wheel from "
            "k2-fsa.github.io/k2 that fits your torch; greedy search, training and packing work without it"
        ) from None
    return k2


def forget_properties(fsa: Any) -> None:
    """Make k2 compute the properties of a graph again after its labels were changed (k2 issue 874).

    k2 caches them under this name in 1.23.4 and 1.24.4 and keeps stale ones after `fsa.labels = ...`.
    """
    fsa.__dict__["_properties"] = None
