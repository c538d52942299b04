"""Where alphas start, against a fine search and the closed forms of Gaussian weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.core.grids import GRANULARITIES, LOW_BITS, code_table
from lowbit_k2.quant import QuantConfig, TensorScheme, quantize_model
from lowbit_k2.quant.least_squares import nearest_alpha
from lowbit_k2.quant.projection import expand_steps
from lowbit_k2.quant.scales import measure, scale_from_statistic
from lowbit_k2.quant.switching import latent_weights


def error(weight: Tensor, steps: Tensor, bits: int) -> float:
    """Squared distance to the nearest points of the grid, by trying all of them."""
    codes = torch.tensor(code_table(bits), dtype=torch.float64)
    distances = weight.double().unsqueeze(-1) - steps.double().unsqueeze(-1) * codes
    return float(distances.square().min(dim=-1).values.sum())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", LOW_BITS)
def test_no_alpha_is_nearer(bits: int, granularity: str) -> None:
    generator = torch.Generator().manual_seed(bits)
    for scale_name in ("2std-clipped", "running-absmax"):
        weight = torch.randn(6, 70, generator=generator) * torch.logspace(-2, 0, 6).unsqueeze(1)
        scale = scale_from_statistic(measure(weight, scale_name, granularity), scale_name, bits)
        steps = expand_steps(scale, weight.shape, granularity).expand(weight.shape)
        alpha = float(nearest_alpha(weight, scale, bits, granularity))
        best = min(error(weight, steps * tried, bits) for tried in torch.linspace(0.005, 3.0, 400).tolist())
        assert error(weight, steps * alpha, bits) <= best * (
            1.0 if bits <= 2 else 1.02
        )  # of 420 weights: many local optima
        around = [error(weight, steps * alpha * factor, bits) for factor in (0.995, 1.005)]
        assert error(weight, steps * alpha, bits) <= min(around) * (1 + 1e-6 if bits <= 2 else 1.01)


def test_gaussian_weights() -> None:
    """1 bit: mean|w| = sqrt(2/pi) sigma; 2 bits: 1.224 sigma for codes -1, 0, 1 (Max 1960, by symmetry of 3 levels)."""
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    two_sigma = scale_from_statistic(measure(weight, "2std-clipped", "tensor"), "2std-clipped", 1)
    # 2 sigma is held at 1: s = 1 here
    assert float(nearest_alpha(weight, two_sigma, 1, "tensor")) == pytest.approx(math.sqrt(2 / math.pi), rel=2e-3)
    assert float(nearest_alpha(weight, two_sigma, 2, "tensor")) == pytest.approx(1.2240, rel=5e-3)


def test_zeros_start_at_one() -> None:
    weight = torch.zeros(4, 4)
    assert float(nearest_alpha(weight, torch.tensor(1e-8), 2, "tensor")) == 1.0


@pytest.mark.parametrize("alpha_init", ["l2", "one"])
def test_quantize_model_starts_alphas(alpha_init: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    schemes = {"linear": TensorScheme((4, 2, 1)), "bias": TensorScheme((16,))}
    quantize_model(model, QuantConfig("mine", schemes, alpha_init=alpha_init))
    for quantizer, weight in latent_weights(model).items():
        if quantizer.role != "linear":
            continue
        for bits in (4, 2, 1):
            alpha = float(quantizer.alphas[str(bits)].detach())
            expected = float(nearest_alpha(weight, quantizer.scale(weight, bits), bits, "tensor"))
            assert alpha == (expected if alpha_init == "l2" else 1.0)
            assert expected != 1.0
