"""The descent by a loss that is no sum, against all choices."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from lowbit_k2.allocation.choose import choose, evaluate
from lowbit_k2.allocation.descent import descend, divergence_from_float, loss_at, uniform_choices
from lowbit_k2.allocation.sensitivity import Sensitivity, groups_of, only, output_divergence
from lowbit_k2.errors import UserError
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.quant import Allocation, use_precision
from tests.allocation.test_sensitivity import BATCH, BITS, quantized

WEIGHTS = (60, 100, 30, 80, 50)


def tables(seed: int) -> tuple[Sensitivity, dict[str, float]]:
    """Sensitivities 4^-b times a factor, and factors that are not those of the table."""
    draw = random.Random(seed)
    names = [f"l{i}" for i in range(len(WEIGHTS))]
    factors = {n: draw.uniform(0.2, 2) for n in names}
    return Sensitivity(
        "kl",
        "model",
        {n: (n,) for n in names},
        {n: {b: factors[n] * 4.0**-b for b in BITS} for n in names},
        {n: {b: w * b for b in BITS} for n, w in zip(names, WEIGHTS, strict=True)},
    ), {n: draw.uniform(0.2, 2) for n in names}


def loss_from(factors: dict[str, float]):
    """Noise that layers hand on: what a layer adds counts the more, the less is left of the others."""

    def loss_of(allocation: Allocation) -> float:
        noise = [factors[n] * 2.0 ** -allocation.bits[n] for n in factors]
        return math.exp(sum(noise)) - 1 + max(noise)

    return loss_of


@pytest.mark.parametrize("seed", range(6))
def test_it_finds_the_best_of_all_choices(seed: int) -> None:
    table, factors = tables(seed)
    loss_of = loss_from(factors)
    budget = 2 * sum(WEIGHTS)
    every = [evaluate(table, dict(zip(table.loss, bits, strict=True))) for bits in itertools.product(BITS, repeat=5)]
    losses = {tuple(c.bits.values()): loss_of(c.allocation()) for c in every if c.size <= budget}
    calls: list[Allocation] = []
    found = descend(table, budget, lambda a: (calls.append(a), loss_of(a))[1], 300, seed=seed)
    assert found.size <= budget and found == evaluate(table, found.bits)
    assert losses[tuple(found.bits.values())] <= min(losses.values()) * 1.02
    assert len({tuple(a.bits.values()) for a in calls}) == len(calls) <= 304  # none twice


@pytest.mark.parametrize("trials", [0, 1, 20])
def test_it_is_never_worse_than_what_it_begins_with(trials: int) -> None:
    table, factors = tables(9)
    loss_of = loss_from(factors)
    budget = 2 * sum(WEIGHTS) + 10
    found = loss_of(descend(table, budget, loss_of, trials).allocation())
    assert found <= loss_of(choose(table, budget).allocation())
    assert all(found <= loss_of(Allocation(dict.fromkeys(table.loss, b))) for b in (1, 2))


def test_ties_and_what_is_forbidden_hold() -> None:
    table, factors = tables(3)
    tied, forbidden = [["l0", "l3"]], [("l1", 1), ("l4", 8)]
    calls: list[Allocation] = []

    def loss_of(allocation: Allocation) -> float:
        calls.append(allocation)
        return loss_from(factors)(allocation)

    for budget in (700, 800, 1000, 1200):
        descend(table, budget, loss_of, 60, tied, forbidden)
    assert len(calls) >= 15
    for a in calls:
        assert a.bits["l0"] == a.bits["l3"] and a.bits["l1"] != 1 and a.bits["l4"] != 8
    with pytest.raises(UserError, match="cannot be met"):
        descend(table, 10, loss_of, 60)


def test_the_loss_is_that_of_the_criterion() -> None:
    model, _ = quantized()
    allocation = Allocation({"": 2, "ctc_head": 8})
    with torch.no_grad(), use_precision(model, allocation):
        out = CtcCriterion()(model, BATCH, 1_000_000)
    expected = float(out.loss) / out.num_frames
    assert loss_at(model, CtcCriterion(), [BATCH, BATCH], allocation) == pytest.approx(expected, rel=1e-6)
    assert loss_at(model, CtcCriterion(), [BATCH], Allocation.uniform(1)) != pytest.approx(expected, rel=1e-3)


def test_the_divergence_is_the_sensitivity_where_one_group_is_low() -> None:
    model, _ = quantized()
    group, names = list(groups_of(model).items())[2]
    expected = output_divergence(model, CtcCriterion(), [BATCH, BATCH], {group: names}, (2,))[group][2]
    divergence_of = divergence_from_float(model, CtcCriterion(), [BATCH, BATCH])
    assert divergence_of(only(names, 2)) == pytest.approx(expected, rel=1e-6) and expected > 0
    assert divergence_of(Allocation.uniform(32)) == pytest.approx(0, abs=1e-9)


def test_uniform_precisions_that_a_budget_allows() -> None:
    table, factors = tables(2)
    budget = 2 * sum(WEIGHTS)
    uniform = uniform_choices(table, budget, [("l3", 1)])
    assert [set(choice.bits.values()) for choice in uniform] == [{2}]  # 1 bit is forbidden, 4 are too many
    loss_of = loss_from(factors)
    assert loss_of(descend(table, budget, loss_of, 50).allocation()) <= loss_of(uniform[0].allocation())
