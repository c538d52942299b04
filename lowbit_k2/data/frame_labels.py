"""Labels of the frames of utterances: what `recipe/label_frames.py` writes, and masked prediction learns.

A file is a safetensors file with all labels one behind the other, the place at which each utterance ends, their ids as
text, and in its header the number of classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from lowbit_k2.data.batch import pad
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write

FORMAT = "lowbit_k2 frame labels 1"
PADDING = 0  # behind an utterance, where no frame is looked at


def labels_path(folder: str | Path, corpus: str, split: str) -> Path:
    return Path(folder) / f"{corpus}_labels_{split}.safetensors"


class FrameLabels:
    """Labels by the id of the utterance.

    Attributes:
      by_id: int16 (T,) of each.
      num_classes: labels are less.
    """

    def __init__(self, by_id: Mapping[str, np.ndarray], num_classes: int) -> None:
        self.by_id, self.num_classes = dict(by_id), num_classes

    def of(self, ids: Sequence[str]) -> Tensor:
        """Of a batch, (N, T) int64, padded."""
        return torch.from_numpy(pad([self.by_id[name] for name in ids], PADDING).astype(np.int64))

    def save(self, path: Path) -> None:
        """Write the file, or nothing."""
        rows = list(self.by_id.values())
        tensors = {
            "labels": np.concatenate(rows).astype(np.int16),
            "ends": np.cumsum([len(row) for row in rows], dtype=np.int64),
            "ids": np.frombuffer("\n".join(self.by_id).encode(), np.uint8),
        }
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {"format": FORMAT, "num_classes": str(self.num_classes)})

    @classmethod
    def load(cls, paths: Iterable[Path]) -> FrameLabels:
        """Those of several files.

        Raises:
          UserError: one is missing, damaged or something else, or they have different numbers of classes.
        """
        by_id: dict[str, np.ndarray] = {}
        known: dict[int, Path] = {}
        for path in paths:
            found, num_classes = _read(path)
            known.setdefault(num_classes, path)
            by_id |= found
        if len(known) > 1:
            (one, first), (two, second) = list(known.items())[:2]
            raise UserError(f"{first} has {one} classes, {second} has {two}: label both by the same clusters")
        return cls(by_id, next(iter(known)))


def _read(path: Path) -> tuple[dict[str, np.ndarray], int]:
    if not path.is_file():
        raise UserError(f"{path} does not exist: run `python -m lowbit_k2.recipe.label_frames` first")
    try:
        with safe_open(path, "numpy") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise UserError(f"{path} holds no labels of frames: make it with label_frames")
            num_classes = int(meta["num_classes"])
            labels, ends, ids = (file.get_tensor(name) for name in ("labels", "ends", "ids"))
        names = ids.tobytes().decode().split("\n")
        whole = len(names) == len(set(names)) == len(ends) and ends[-1] == len(labels) and labels.dtype == np.int16
        if not whole or (np.diff(ends, prepend=0) <= 0).any() or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError("its parts do not fit each other")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it and label the frames again") from None
    return dict(zip(names, np.split(labels, ends[:-1]), strict=True)), num_classes
