"""Scale statistics against torch.std and plain means, group by group."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowbit_k2.core.grids import group_shape
from lowbit_k2.quant.scales import SMALLEST_SCALE, STATISTICS, measure, measure_tensors, scale_from_statistic

SHAPES = [(6, 150), (6, 128), (5, 1, 31), (4, 3, 3, 3), (1, 300)]
GRANULARITIES = ["tensor", "channel", "block64"]


def groups(weight: Tensor, granularity: str) -> list[Tensor]:
    rows = list(weight.reshape(len(weight), -1))
    if granularity == "tensor":
        return [weight.flatten()]
    return rows if granularity == "channel" else [block for row in rows for block in row.split(64)]


def expected(group: Tensor, name: str, bits: int) -> float:
    top = 1 if bits <= 2 else 2 ** (bits - 1) - 1
    group = group.double()
    return {
        "2std-clipped": min(2 * group.std().item(), 1.0) / top,
        "absmean": group.abs().mean().item(),
        "fitted": group.abs().mean().item(),
        "lsq": 2 * group.abs().mean().item() / math.sqrt(top),
        "running-absmax": group.abs().max().item() / top,
    }[name]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scale_of_every_group(shape: tuple[int, ...], name: str, granularity: str) -> None:
    torch.manual_seed(0)
    sizes = 0.1 + torch.rand(shape[0])  # a different deviation in each row
    weight = torch.randn(shape) * sizes.view(-1, *(1,) * (len(shape) - 1)) + 0.05
    statistic = measure(weight, name, granularity)
    assert tuple(statistic.shape) == group_shape(weight.shape, granularity) and statistic.dtype == weight.dtype
    for bits in (1, 2, 4, 8):
        scale = scale_from_statistic(statistic, name, bits)
        reference = torch.tensor([expected(group, name, bits) for group in groups(weight, granularity)])
        torch.testing.assert_close(scale.flatten(), reference, rtol=2e-6, atol=0.0)


def test_two_std_is_clipped_at_one() -> None:
    weight = 3.0 * torch.randn(10, 40)
    assert scale_from_statistic(measure(weight, "2std-clipped", "tensor"), "2std-clipped", 1) == 1.0


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_all_zero_groups_have_a_tiny_positive_scale(name: str, granularity: str) -> None:
    scale = scale_from_statistic(measure(torch.zeros(3, 70), name, granularity), name, 1)
    assert torch.equal(scale, torch.full_like(scale, SMALLEST_SCALE))


def test_a_single_weight_has_its_magnitude_for_a_deviation() -> None:
    weight = torch.randn(2, 65) * 0.1
    blocks = measure(weight, "2std-clipped", "block64")
    torch.testing.assert_close(blocks[:, 1], 2 * weight[:, 64].abs())
    column = measure(weight[:, :1], "2std-clipped", "channel")
    torch.testing.assert_close(column, 2 * weight[:, 0].abs())


@pytest.mark.parametrize("name", STATISTICS)
def test_the_number_of_threads_does_not_matter(name: str) -> None:
    weight = torch.randn(300, 700) * 0.03
    before = torch.get_num_threads()
    try:
        values = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            values.append(measure(weight, name, "tensor"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])


def test_not_a_number_is_not_hidden() -> None:
    weight = torch.randn(4, 4)
    weight[1, 2] = float("nan")
    for name in STATISTICS:
        assert torch.isnan(scale_from_statistic(measure(weight, name, "tensor"), name, 1))


@pytest.mark.parametrize("name", STATISTICS)
def test_many_tensors_measured_together(name: str) -> None:
    torch.manual_seed(3)
    weights = [torch.randn(shape) * 0.1 for shape in ((5, 7), (64, 130), (1, 1), (144, 3, 3), (9,))]
    together = measure_tensors(weights, name)
    assert torch.equal(together, torch.stack([measure(weight, name, "tensor") for weight in weights]))
