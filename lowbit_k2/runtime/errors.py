"""What the runtime refuses although nothing is wrong with it, and the file that an error is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit_k2.errors import UserError


class UnsupportedError(UserError):
    """A model that the runtime has no parts for, or a package that it lacks: PyTorch may run it."""


@contextmanager
def errors_name(path: str | Path) -> Iterator[None]:
    """Put a file's name in front of errors."""
    try:
        yield
    except UserError as error:
        kind = UnsupportedError if isinstance(error, UnsupportedError) else UserError
        raise kind(f"{path}: {error}") from None
