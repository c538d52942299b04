"""What a result was made from, beside it on the disk: a stage that finds its result there compares before it skips."""

from __future__ import annotations

import gzip
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json, write_json
from lowbit_k2.textfile import GZIP


def content_sha256(path: Path) -> str:
    """Checksum of what a file holds; of a gzipped one unpacked, since its header has the time of writing."""
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    digest = hashlib.sha256()
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): make or copy it again") from None
    return digest.hexdigest()


def origin_path(target: Path) -> Path:
    """`x_cuts_train.jsonl.gz` has `x_cuts_train.origin.json`, a folder has one beside it as well."""
    return target.with_name(f"{target.name.split('.')[0]}.origin.json")


def is_done(target: Path, origin: Mapping[str, Any]) -> bool:
    """Whether `target` is there, made from just this.

    Raises:
      UserError: it is there, made from something else; the difference is named.
    """
    if not target.exists():
        return False
    path = origin_path(target)
    if not path.is_file():
        logging.info("%s is there already, from before records of origins were kept: skipped", target)
        return True
    before = read_json(path)
    before = before if isinstance(before, dict) else {}
    changed = [
        f"{key} {_short(before.get(key))} -> {_short(origin.get(key))}"
        for key in dict.fromkeys([*origin, *before])
        if before.get(key) != origin.get(key)
    ]
    if changed:
        raise UserError(f"{target} was made from something else ({'; '.join(changed[:3])}): remove it to make it again")
    logging.info("%s is there already: skipped", target)
    return True


def write_origin(target: Path, origin: Mapping[str, Any]) -> None:
    """Remember; to be called before `target` gets its name, so that no result is without."""
    write_json(origin_path(target), dict(origin))


def _short(value: Any) -> str:
    return str(value)[:12]
