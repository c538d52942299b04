"""The optional packages that read and write ONNX, and the one message for machines without them."""

from __future__ import annotations

import importlib
from types import ModuleType

from lowbit_k2.errors import UserError

INSTALL = "pip install -r requirements-onnx.txt"


def require(name: str) -> ModuleType:
    """Import and return `onnx`, `onnxruntime.quantization` or the like.

    Raises:
      UserError: it is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, AttributeError) as error:
        package = name.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "is not installed" if missing else f"cannot be imported ({error})"
        raise UserError(f"ONNX files need the package {package}, which {reason}: {INSTALL}") from None
