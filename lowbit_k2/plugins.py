"""Users' files that register model kinds, objectives, searches, quantizers, statistics: run before any lookup."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from lowbit_k2.errors import UserError

PLUGIN_HELP = (
    "a Python file of yours that registers model kinds, objectives, searches, quantizers or statistics; it is run"
)


def load_plugins(paths: Sequence[Path]) -> None:
    """Run users' files, each once per process.

    Raises:
      UserError: one of them does not exist.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"plugin {path} does not exist: give a Python file")
        name = f"lowbit_k2_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
