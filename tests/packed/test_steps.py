"""What the next precision down saves: against files that were written so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.packed import PackedModel, PackedTensor, next_steps, read_packed, write_packed
from tests.packed.samples import sample_tensors

RNG = np.random.default_rng(0)
DOWN = (("int8", "int4"), ("int6", "int4"), ("int4", "ternary"), ("int3", "ternary"), ("ternary", "binary"))
LARGEST = {"binary": 1, "ternary": 1, "int3": 3, "int4": 7, "int6": 31, "int8": 127}


def matrix(encoding: str) -> PackedTensor:
    shape = (6, 77)
    if encoding.startswith("float"):
        return PackedTensor.from_values("w", "linear", encoding, RNG.normal(size=shape).astype(encoding))
    codes = np.where(RNG.random(shape) < 0.5, -1, 1).astype(np.int8)
    granularity = "channel" if encoding in ("int8", "int4", "int6", "int3") else "tensor"
    step = np.ones(6 if granularity == "channel" else (), np.float32)
    return PackedTensor.from_codes("w", "linear", encoding, codes * min(1, LARGEST[encoding]), step, granularity)


@pytest.mark.parametrize(("encoding", "to"), [("float32", "float16"), ("float16", "int8"), *DOWN])
def test_a_file_that_has_gone_down_is_as_small_as_was_said(encoding: str, to: str, tmp_path: Path) -> None:
    """But for the index, which is compressed text, and steps, which codes keep as fine as they were."""
    write_packed(tmp_path / "a", PackedModel([matrix(encoding)], {}))
    found = read_packed(tmp_path / "a")
    [step] = next_steps(found.tensors, found.sizes.total)
    assert (step.encoding, step.to, step.num_weights) == (encoding, to, 462)
    kept = 0 if encoding.startswith("float") or to in ("int4", "binary") else 5 * 4  # ours have one step per tensor
    assert step.saved + kept == matrix(encoding).nbytes - matrix(to).nbytes
    assert step.total == found.sizes.total - step.saved and step.ratio == pytest.approx(4 * 462 / step.total)


def test_what_cannot_go_down_is_left_out() -> None:
    vector = PackedTensor.from_values("v", "bias", "float16", np.ones(4, np.float16))
    assert next_steps([vector, matrix("binary")], 1000) == []


def test_every_encoding_has_a_row_and_the_largest_gain_is_first() -> None:
    tensors = sample_tensors()
    steps = next_steps(tensors, 10**6)
    assert {s.encoding for s in steps} == {t.encoding for t in tensors} - {"binary", "index1", "float16"}
    assert [s.saved for s in steps] == sorted((s.saved for s in steps), reverse=True)
    assert all(s.to.startswith("index") == s.encoding.startswith("index") for s in steps)
