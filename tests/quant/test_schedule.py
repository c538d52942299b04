"""--precision as users write it, and the stochastic-precision schedules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit_k2.errors import UserError
from lowbit_k2.quant import draw_sp, parse_precision, sp_probabilities

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
    assert draw_sp([0.0, 1.0], again, low=2, high=4) == [4, 2]


def test_parse_precision() -> None:
    assert parse_precision("1", 12) == 1 and parse_precision("32", 12) == 32 and parse_precision(" 16 ", 3) == 16
    assert parse_precision("1.5", 4) == [1, 1, 2, 2]
    assert parse_precision("1.5", 5) == [1, 1, 2, 2, 2]
    assert parse_precision("1.5r", 5) == [2, 2, 2, 1, 1]
    assert parse_precision("1, 1,2,2", 4) == [1, 1, 2, 2]


@pytest.mark.parametrize("text", ["", "0", "9", "x", "1.6", "1,1", "1,1,2,9", "-1", "1;1;2;2", "²"])
def test_parse_precision_refuses(text: str) -> None:
    with pytest.raises(UserError, match="precision"):
        parse_precision(text, 4)


def test_schedule_refusals() -> None:
    with pytest.raises(UserError, match="schedule"):
        sp_probabilities(3, "cosine")
    with pytest.raises(UserError, match="between 0 and 1"):
        sp_probabilities(3, "linear", last=1.2)
