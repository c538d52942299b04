"""One process at a time in a folder: a lock that the system releases when its holder ends, however that is killed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit_k2.errors import UserError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock for the length of the body. File systems that know no locks (some of networks) go without.

    Args:
      path: of the lock file, which goes away at the end: `FOLDER/.lock`, or one for a part of a folder.

    Raises:
      UserError: another process holds it; its number is named.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "another one"
            os.close(descriptor)
            raise UserError(
                f"{path} is held by process {holder}, which is at work there: wait for it, or choose another folder"
            ) from None
        except OSError:  # no locks here
            break
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its holder has just removed the file
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        for folder in missing:  # where nothing came of the work, not even its folder stays
            if any(folder.iterdir()):
                break
            folder.rmdir()


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
