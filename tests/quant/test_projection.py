"""Codes against a brute-force search of the table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit_k2.core.grids import LOW_BITS, code_table, group_shape, max_code
from lowbit_k2.quant.projection import expand_steps, project

finite = st.floats(-1e3, 1e3, width=32)


def test_tables_are_those_of_the_paper() -> None:
    assert code_table(1) == [-1, 1]
    assert code_table(2) == [-1, 0, 1]
    assert code_table(3) == [-3, -2, -1, 0, 1, 2, 3]
    assert [max_code(bits) for bits in (4, 8)] == [7, 127]


@settings(deadline=None, max_examples=200)
@given(st.lists(finite, min_size=1, max_size=8), st.floats(0.0078125, 8.0, width=32), st.sampled_from(LOW_BITS))
def test_project_takes_the_nearest_entry(values: list[float], step: float, bits: int) -> None:
    weight, step = torch.tensor(values), torch.tensor(step)
    codes = project(weight, step, bits)
    for w, code in zip(weight / step, codes.tolist(), strict=True):
        distances = [abs(float(w) - entry) for entry in code_table(bits)]
        assert code in code_table(bits)
        assert abs(float(w) - code) == min(distances)


def test_ties_and_zeros() -> None:
    one = torch.tensor(1.0)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert project(x, one, 4).tolist() == [0, 2, 2, 0, -2, -2]  # half to even
    assert project(torch.tensor([0.0, -0.0, -1e-30, 1e-30]), one, 1).tolist() == [1, 1, -1, 1]
    zeros = project(torch.tensor([-0.3, -0.0, 0.3]), one, 2)
    assert not torch.signbit(zeros).any()  # never -0.0: codes stored as integers have no such thing


def test_the_argument_is_not_changed() -> None:
    weight = torch.randn(5)
    before = weight.clone()
    project(weight, torch.tensor(0.1), 2)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(3, 130), (3, 64), (3, 1), (4, 2, 3, 3), (2, 1, 31)])
def test_spread_gives_each_weight_the_step_of_its_group(shape: tuple[int, ...]) -> None:
    rows, cols = shape[0], torch.Size(shape).numel() // shape[0]
    assert group_shape(shape, "tensor") == ()
    assert group_shape(shape, "channel") == (rows,)
    assert group_shape(shape, "block64") == (rows, (cols + 63) // 64)
    for granularity in ("tensor", "channel", "block64"):
        step = torch.rand(group_shape(shape, granularity))
        full = expand_steps(step, shape, granularity).expand(shape).reshape(rows, cols)
        for row in range(rows):
            for col in range(cols):
                index = {"tensor": (), "channel": (row,), "block64": (row, col // 64)}[granularity]
                assert full[row, col] == step[index]
