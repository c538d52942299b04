"""Labels of frames go to a file and come back; a damaged or foreign one is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowbit_k2.data.frame_labels import FORMAT, FrameLabels
from lowbit_k2.errors import UserError

LABELS = {"a-1": np.array([0, 3, 3], np.int16), "b": np.array([4], np.int16), "ü": np.array([1, 2], np.int16)}


def test_there_and_back(tmp_path: Path) -> None:
    FrameLabels(LABELS, 5).save(tmp_path / "one")
    FrameLabels({"c": np.array([2, 2], np.int16)}, 5).save(tmp_path / "two")
    found = FrameLabels.load([tmp_path / "one", tmp_path / "two"])
    assert found.num_classes == 5 and list(found.by_id) == ["a-1", "b", "ü", "c"]
    assert all(np.array_equal(found.by_id[name], row) for name, row in LABELS.items())
    batch = found.of(["b", "a-1", "c"])
    assert batch.tolist() == [[4, 0, 0], [0, 3, 3], [2, 2, 0]] and str(batch.dtype) == "torch.int64"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"labels": np.array([0, 3, 5, 4, 1, 2], np.int16)}, "parts do not fit"),
        ({"labels": np.array([0, 3, -1, 4, 1, 2], np.int16)}, "parts do not fit"),
        ({"labels": np.zeros(6, np.float32)}, "parts do not fit"),
        ({"ends": np.array([3, 2, 6])}, "parts do not fit"),
        ({"ids": np.frombuffer(b"a\na\nb", np.uint8)}, "parts do not fit"),
        ({"ids": np.frombuffer(b"\xff\n1\nb", np.uint8)}, "is damaged"),
        ({"num_classes": "many"}, "is damaged"),
        ({"format": "other"}, "holds no labels of frames"),
        (None, "is damaged"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, changed: dict | None, words: str) -> None:
    path = tmp_path / "labels"
    FrameLabels(LABELS, 5).save(path)
    if changed is None:
        path.write_bytes(path.read_bytes()[:-3])
    else:
        meta = {"format": FORMAT, "num_classes": "5"} | {k: v for k, v in changed.items() if isinstance(v, str)}
        tensors = load_file(path) | {k: v for k, v in changed.items() if not isinstance(v, str)}
        save_file(tensors, path, meta)
    with pytest.raises(UserError, match=words) as error:
        FrameLabels.load([path])
    assert str(path) in str(error.value)


def test_what_is_missing_or_of_other_clusters(tmp_path: Path) -> None:
    FrameLabels(LABELS, 5).save(tmp_path / "one")
    FrameLabels(LABELS, 6).save(tmp_path / "two")
    with pytest.raises(UserError, match="one has 5 classes, .*two has 6: label both by the same clusters"):
        FrameLabels.load([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(UserError, match="gone does not exist: run .*label_frames"):
        FrameLabels.load([tmp_path / "gone"])
