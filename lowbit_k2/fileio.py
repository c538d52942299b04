"""Whole files or none: atomic writes, and JSON that fails with one clear line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowbit_k2.errors import UserError

TEMPORARY = ".tmp-"  # how the names of files begin that are not whole yet


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on an error it is removed.

    The temporary name keeps the suffixes of `path`, because several writers choose their format by them.

    Raises:
      OSError: of the body or of the system; it names `path` where a write failed, for want of room for instance.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY, suffix="-" + path.name)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private; outputs follow the user's umask
        _flush(temporary)  # a name must not reach the disk before its contents
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        if error.filename is None or error.filename == name:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the system write a file or folder to the disk; not all file systems can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # no room may show only here
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a killed process left half-written in a folder that nobody else writes to."""
    for path in Path(folder).glob(f"{TEMPORARY}*"):
        path.unlink()


def sha256(path: Path) -> str:
    """Checksum of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
      UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
