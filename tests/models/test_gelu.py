"""GELU's gradient, whatever the layout of what comes back, and that nothing goes round it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import lowbit_k2
from lowbit_k2.models.gelu import gelu

PACKAGE = Path(lowbit_k2.__file__).parent


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (1, 0, 2)])
def test_the_gradient_is_that_of_the_formula(axes: tuple[int, int, int]) -> None:
    """Phi(x) + x phi(x), for gradients that are transposed in memory; several times, over memory without numbers."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x, seed = torch.randn(2, 4, 6, 8, generator=generator)
        exact = x.double()
        slope = (1 + torch.erf(exact / math.sqrt(2))) / 2 + exact * torch.exp(-(exact**2) / 2) / math.sqrt(2 * math.pi)
        lost = [torch.full((4, 6, 8), float("nan")) for _ in range(50)]
        del lost
        x.requires_grad_()
        gelu(x).backward(seed.permute(axes).contiguous().permute(axes))
        torch.testing.assert_close(x.grad.double(), seed.double() * slope, rtol=1e-5, atol=1e-5)


def test_no_module_calls_torchs_own() -> None:
    own = re.compile(r"\b(F|functional|torch)\.gelu\b|\bGELU\(")
    users = [p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if own.search(p.read_text())]
    assert users == ["models/gelu.py"]
