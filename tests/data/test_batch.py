from __future__ import annotations

import torch
from torch.nn.utils.rnn import pad_sequence

from lowbit_k2.data.batch import collate


def test_collate_pads_with_zeros_and_keeps_the_order() -> None:
    matrices = [torch.randn(length, 4) for length in (3, 7, 1)]
    batch = collate(matrices, ["A", "B C", ""], ["x", "y", "z"])
    assert torch.equal(batch.inputs, pad_sequence(matrices, batch_first=True))
    assert batch.inputs.dtype == torch.float32
    assert batch.input_lens.tolist() == [3, 7, 1] and batch.input_lens.dtype == torch.int64
    assert batch.texts == ["A", "B C", ""] and batch.ids == ["x", "y", "z"]


def test_collate_leaves_its_input_alone() -> None:
    matrix = torch.ones(2, 3)
    collate([matrix], ["A"], ["x"]).inputs.zero_()
    assert bool((matrix == 1).all())
