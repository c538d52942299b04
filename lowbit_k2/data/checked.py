"""Features are looked at once: which cuts hold numbers that are not finite is remembered beside the manifest.

Loading a cut takes milliseconds, so that looking at a million of them takes most of an hour, at every start and resume.
The record is that of these cuts in these files: another manifest, or a file of another size or date, has none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowbit_k2.data.sources import parts_of
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json, write_json

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

SAMPLE = 0.01  # of the cuts that a record knows are looked at again


def digest(value: Any) -> str:
    """Checksum of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()


def cuts_digest(cuts: CutSet, on_the_fly: bool) -> str:
    """Checksum of a manifest, and of sizes and dates of the files that are read for it."""
    found, places = hashlib.sha256(), set()
    for cut in cuts:
        found.update(digest(cut.to_dict()).encode())
        places.update(_places(cut, on_the_fly))
    found.update(digest([_stamp(place) for place in sorted(places)]).encode())
    return found.hexdigest()


def _places(cut: Cut, on_the_fly: bool) -> Iterable[str]:
    for part in parts_of(cut):
        if not on_the_fly:
            sources = [part.features.storage_path] if part.has_features else []
        else:
            sources = [source.source for source in part.recording.sources] if part.has_recording else []
        yield from (source for source in sources if isinstance(source, str))


def _stamp(place: str) -> list[Any]:
    path = Path(place)
    if not path.exists():
        return [place]
    stat = path.stat()
    return [place, stat.st_size, stat.st_mtime_ns]


class FiniteCheck:
    """Whether the features of a cut are finite numbers; `save` remembers for the next time."""

    def __init__(self, cuts: CutSet, load: Callable[[Cut], Tensor], folder: Path) -> None:
        """
        Args:
          cuts: all that will be asked for.
          load: cut -> features (T, F).
          folder: of the records; one that cannot be written to is no harm.
        """
        self.load = load
        self.path = folder / f".checked-{cuts_digest(cuts, on_the_fly=False)[:24]}.json"
        self.known = _read(self.path)
        self.bad = set(self.known or ())
        if self.known is not None:
            logging.info("features were looked at before: %s", self.path)

    def __call__(self, cut: Cut) -> bool:
        if self.known is None or random.random() < SAMPLE:
            if bool(torch.isfinite(self.load(cut)).all()):
                self.bad.discard(cut.id)
            else:
                self.bad.add(cut.id)
        return cut.id not in self.bad

    def save(self) -> None:
        """Write the record, if all cuts have been asked for."""
        if self.known is None or self.bad != set(self.known):
            try:
                write_json(self.path, {"not finite": sorted(self.bad)})
            except OSError as error:
                logging.info("%s cannot be written (%s): features are looked at again next time", self.path, error)


def _read(path: Path) -> list[str] | None:
    try:
        found = read_json(path)["not finite"] if path.is_file() else None
    except (UserError, KeyError, TypeError):
        return None
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None
