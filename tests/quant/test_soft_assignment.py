"""The soft assignment against the softmax over all centroids, written out in float64, and mu against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowbit_k2.quant import soft_assignment
from lowbit_k2.quant.soft_assignment import BINS, MUS, Assignment, assigned, choose_mu, mu_law_table, summary

BITS = range(1, 9)


def plain_table(mu: float, bits: int) -> list[float]:
    """The paper's formula, number by number."""
    size, values = 2**bits, []
    for j in range(size):
        z = -1 + 2 * j / (size - 1)
        value = (1 if z > 0 else -1) * ((1 + mu) ** abs(z) - 1) / mu
        values.append(round(value * 128) / 128)
    return values


def softmax_average(weight: Tensor, table: Tensor, alpha: float) -> Tensor:
    """sum_j a_ij z_j, with the whole matrix of weights by centroids."""
    distance = (weight.double().reshape(-1, 1) - table.double()).abs()
    return (torch.softmax(-alpha * distance, dim=1) * table).sum(1).reshape(weight.shape)


def mixed_weights(table: Tensor) -> Tensor:
    """Weights inside, outside, on the entries and half-way between them."""
    torch.manual_seed(0)
    return torch.cat([0.5 * torch.randn(500, dtype=torch.float64), table, (table[1:] + table[:-1]) / 2])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("mu", [1 / 16, 8.0, 255.0])
def test_table(bits: int, mu: float) -> None:
    table = mu_law_table(torch.tensor(mu), bits)
    assert table.tolist() == pytest.approx(plain_table(mu, bits), abs=1e-12)
    assert table[-1] == 1.0 and torch.equal(table, -table.flip(0)) and torch.equal(table, table.sort().values)
    assert not torch.signbit(table[table == 0]).any()
    many = mu_law_table(torch.tensor([mu, 3.0]), bits)
    assert torch.equal(many[0], table)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("alpha", [1.0, 10.0, 400.0, 700.0])
def test_soft_values_are_those_of_the_softmax(bits: int, alpha: float) -> None:
    for mu in (0.1, 8.0, 1024.0):
        table = mu_law_table(torch.tensor(mu), bits)
        weight = mixed_weights(table)
        expected = softmax_average(weight, table, alpha)
        torch.testing.assert_close(Assignment.of(table, alpha).values(weight), expected, rtol=0.0, atol=1e-12)
        single = assigned(weight.float().view(1, -1), table, alpha)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double()[0], softmax_average(weight.float(), table, alpha), rtol=0, atol=1e-4)


def test_several_tables_at_once() -> None:
    tables = mu_law_table(torch.tensor([1.0, 8.0, 100.0]), 4)
    weight = torch.randn(3, 40, dtype=torch.float64)
    for alpha in (25.0, None):
        values = Assignment.of(tables, alpha).values(weight)
        for i in range(3):
            assert torch.equal(values[i], Assignment.of(tables[i], alpha).values(weight[i]))


@pytest.mark.parametrize("bits", BITS)
def test_hard_values_are_the_nearest_entries(bits: int) -> None:
    table = mu_law_table(torch.tensor(8.0), bits)
    weight = mixed_weights(table)
    distance = (weight.view(-1, 1) - table).abs()
    values = Assignment.of(table, None).values(weight)
    torch.testing.assert_close((weight - values).abs(), distance.min(1).values, rtol=0.0, atol=1e-12)
    half_way = Assignment.of(table, None).values((table[1:] + table[:-1]) / 2)
    torch.testing.assert_close(half_way, table[:-1], rtol=0.0, atol=1e-12)


def test_a_large_alpha_is_hard_and_a_small_one_is_a_mean() -> None:
    table = mu_law_table(torch.tensor(8.0), 3)
    weight = torch.tensor([-0.9, 0.03, 0.4, 2.0], dtype=torch.float64)
    hard = Assignment.of(table, None).values(weight)
    torch.testing.assert_close(Assignment.of(table, 700.0).values(weight), hard, rtol=0.0, atol=1e-6)
    assert Assignment.of(table, 1e-6).values(weight).abs().max() < 1e-5  # of a symmetric table: 0


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    table, weight = mu_law_table(torch.tensor(8.0), 4), 0.3 * torch.randn(90, 70)
    whole, points = assigned(weight, table, 30.0), summary(weight)
    monkeypatch.setattr(soft_assignment, "CHUNK", 101)
    torch.testing.assert_close(assigned(weight, table, 30.0), whole, rtol=0.0, atol=1e-6)
    for a, b in zip(summary(weight), points, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("bits", "alpha"), [(2, 10.0), (4, 100.0), (5, None), (8, 400.0)])
def test_mu_is_that_of_the_least_error(bits: int, alpha: float | None) -> None:
    """No mu of a dense grid does better by more than a hair."""
    torch.manual_seed(bits)
    weight = 0.2 * torch.randn(40, 50, dtype=torch.float64)

    def error(mu: float) -> float:
        table = mu_law_table(torch.tensor(mu), bits)
        hard = table[(weight.reshape(-1, 1) - table).abs().argmin(1)].view(weight.shape)
        return float((softmax_average(weight, table, alpha) if alpha else hard).sub(weight).norm())

    found = choose_mu(weight, bits, alpha, 8.0)
    dense = [2.0 ** (n / 10) for n in range(-40, 101)]
    assert error(found) <= 1.01 * min(map(error, dense)) and error(found) <= error(8.0)
    assert MUS[0] / 2 < found < 2 * MUS[-1]


def test_mu_stays_where_none_is_better() -> None:
    assert choose_mu(torch.ones(3, 3), 1, None, 5.0) == 5.0  # at 1 bit no mu changes the table
    table = mu_law_table(torch.tensor(20.0), 4)
    assert choose_mu(table, 4, None, 20.0) == 20.0


@pytest.mark.parametrize("spread", [0.05, 1.5])
def test_a_histogram_stands_for_many_weights(spread: float) -> None:
    torch.manual_seed(1)
    weight = spread * torch.randn(300, 200)
    points, counts = summary(weight)
    assert len(points) == BINS + 2 and counts.sum() == weight.numel()
    flat = weight.double().reshape(-1)
    for beyond, point, count in ((flat[flat < -1], points[0], counts[0]), (flat[flat >= 1], points[-1], counts[-1])):
        assert count == len(beyond)
        assert point.abs() == 1 if not len(beyond) else float(point) == pytest.approx(float(beyond.mean()), rel=1e-6)
    assert float((points * counts).sum()) == pytest.approx(float(flat.sum()), abs=1e-3 * float(flat.abs().sum()))
    for bits, alpha in ((4, 60.0), (5, None)):
        chosen = choose_mu(weight, bits, alpha, 8.0)
        own = choose_mu(weight[:20].contiguous(), bits, alpha, 8.0)  # 4000: the weights themselves
        table, other = (mu_law_table(torch.tensor(mu), bits) for mu in (chosen, own))
        errors = [float((Assignment.of(t, alpha).values(flat) - flat).norm()) for t in (table, other)]
        assert errors[0] <= 1.002 * errors[1]
