"""Dropout by bytes: rate, scale, independence, reproducibility."""

from __future__ import annotations

import pytest
import torch

from lowbit_k2.models.dropout import dropout


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_rate_and_mean(rate):
    torch.manual_seed(0)
    out = dropout(torch.ones(1000, 1001), rate, training=True)
    assert (out == 0).float().mean() == pytest.approx(rate, abs=0.004)
    assert out.mean() == pytest.approx(1.0, abs=0.005)
    assert len(out.unique()) == 2
    # neighbours, and bytes of the same draw, are independent
    dropped = (out == 0).float() - rate
    for distance in (1, 2, 7, 8):
        assert (dropped[:, distance:] * dropped[:, :-distance]).mean().abs() < 0.003


def test_off_at_rest_and_equal_from_equal_seeds():
    x = torch.randn(3, 5, requires_grad=True)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0, training=True) is x
    torch.manual_seed(4)
    first = dropout(x, 0.5, training=True)
    torch.manual_seed(4)
    assert torch.equal(first, dropout(x, 0.5, training=True))
    first.sum().backward()
    assert torch.equal(x.grad != 0, first != 0) and set(x.grad.unique().tolist()) <= {0.0, 2.0}


def test_keeps_bfloat16():
    assert dropout(torch.ones(9, dtype=torch.bfloat16), 0.1, training=True).dtype == torch.bfloat16
