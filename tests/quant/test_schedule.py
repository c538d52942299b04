"""The stochastic-precision schedules and draws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit_k2.errors import UserError
from lowbit_k2.quant import draw_sp, sp_probabilities

PRINTED = [0.305, 0.377, 0.445, 0.508, 0.567, 0.623, 0.676, 0.726, 0.774, 0.820, 0.863, 0.905]


def test_authors_schedule_gives_the_printed_numbers() -> None:
    ours = sp_probabilities(12)
    assert [round(p, 3) for p in ours] == PRINTED
    formula = (torch.linspace(math.exp(0.2), math.exp(0.8), 12, dtype=torch.float64) / 0.9).log()
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), formula)


def test_other_schedules() -> None:
    assert sp_probabilities(8, "linear") == pytest.approx([0.2 + 0.1 * i for i in range(8)])
    assert sp_probabilities(3, "constant") == [0.5] * 3
    assert sp_probabilities(3, "constant", first=0.3) == [0.3] * 3
    assert sp_probabilities(1, "linear") == pytest.approx([0.55])
    assert sp_probabilities(1) == pytest.approx([(0.5 * (PRINTED[0] + PRINTED[-1]))], abs=1e-3)
    moved = sp_probabilities(4, "log", first=0.1, last=0.6)
    assert moved[0] == pytest.approx(0.1) and moved[-1] == pytest.approx(0.6)


@given(st.integers(1, 40), st.sampled_from(["log", "linear"]))
def test_probability_rises_with_depth(num_layers: int, schedule: str) -> None:
    p = sp_probabilities(num_layers, schedule)
    assert len(p) == num_layers and p == sorted(p) and p[0] > 0 and p[-1] < 1


def test_draws_follow_the_probabilities_and_the_generator() -> None:
    p = [0.1, 0.5, 0.9]
    generator = torch.Generator().manual_seed(3)
    draws = torch.tensor([draw_sp(p, generator) for _ in range(4000)])
    torch.testing.assert_close((draws == 1).double().mean(0), torch.tensor(p).double(), atol=0.03, rtol=0)
    assert set(draws.unique().tolist()) == {1, 2}
    again = torch.Generator().manual_seed(3)
    assert [draw_sp(p, again) for _ in range(5)] == draws[:5].tolist()
    assert draw_sp([0.0, 1.0], again, (4, 2)) == [4, 2]


def test_draws_out_of_several_precisions() -> None:
    """The place among them is a number of successes: binomial."""
    p = [0.0, 0.3, 0.8, 1.0]
    generator = torch.Generator().manual_seed(4)
    draws = torch.tensor([draw_sp(p, generator, (8, 4, 2)) for _ in range(4000)])
    for bits, share in ((8, [(1 - x) ** 2 for x in p]), (4, [2 * x * (1 - x) for x in p]), (2, [x**2 for x in p])):
        torch.testing.assert_close((draws == bits).double().mean(0), torch.tensor(share).double(), atol=0.03, rtol=0)
    assert draw_sp(p, generator, (4,)) == [4] * 4
    first, second = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    uniform = torch.rand(4, generator=first, dtype=torch.float64)
    assert draw_sp(p, second) == [1 if u < x else 2 for u, x in zip(uniform.tolist(), p, strict=True)]
    for wrong in ((), (1, 2), (2, 2)):
        with pytest.raises(UserError, match="high to low"):
            draw_sp(p, generator, wrong)


def test_schedule_refusals() -> None:
    with pytest.raises(UserError, match="schedule"):
        sp_probabilities(3, "cosine")
    with pytest.raises(UserError, match="between 0 and 1"):
        sp_probabilities(3, "linear", last=1.2)
