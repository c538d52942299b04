"""Weights on their way to the grid: between float and quantized, with the gradients that were promised."""

from __future__ import annotations

import pytest
import torch

from lowbit_k2.quant import QuantConfig, quantize_model, use_precision
from lowbit_k2.quant.projection import project
from lowbit_k2.quant.relaxation import piecewise_affine, relax
from lowbit_k2.quant.switching import find_quantizers
from lowbit_k2.train.optim import OptimConfig, rising_hardness

WEIGHT = torch.linspace(-2.2, 2.2, 401)


def test_blend_is_in_between() -> None:
    value = torch.sign(WEIGHT)
    for hardness in (0.0, 0.3, 1.0):
        expected = (1 - hardness) * WEIGHT + hardness * value
        torch.testing.assert_close(relax("blend", hardness, WEIGHT, value, None, 1), expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("softness", [1.0, 0.5, 0.1, 1e-4])
def test_the_map_of_parq_by_its_definition(bits: int, softness: float) -> None:
    """Slope 1 / softness about the middle between neighbours, flat elsewhere: the grid at 0, the identity at 1."""
    grid = [-1.0, 1.0] if bits == 1 else [float(c) for c in range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))]
    neighbours = list(zip(grid, grid[1:], strict=False))
    x = torch.linspace(1.3 * grid[0] - 0.01, 1.3 * grid[-1], 777, dtype=torch.float64)
    expected = torch.full_like(x, grid[0])
    for low, high in neighbours:
        half = (high - low) / 2
        expected += ((x - (low + high) / 2) / softness).clamp(-half, half) + half
    torch.testing.assert_close(piecewise_affine(x, softness, bits), expected)
    if softness == 1.0:
        inside = (x > grid[0]) & (x < grid[-1])
        torch.testing.assert_close(piecewise_affine(x, softness, bits)[inside], x[inside])
    if softness == 1e-4:
        far = torch.stack([(x - (a + b) / 2).abs() > 1e-3 for a, b in neighbours]).all(0)
        codes = project(x, torch.ones((), dtype=x.dtype), bits)
        torch.testing.assert_close(piecewise_affine(x, softness, bits)[far], codes[far])


@pytest.mark.parametrize("kind", ["blend", "parq"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_model_comes_to_its_grids(kind: str, bits: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(24, 12)
    quantize_model(model, QuantConfig.preset("lossless16", precisions=(bits,)))
    [quantizer] = [q for q in find_quantizers(model) if q.name == "weight"]
    latent = model.parametrizations.weight.original
    hook = rising_hardness(model, OptimConfig(relax=kind, relax_until=0.5))

    def weight() -> torch.Tensor:
        with use_precision(model, bits):
            return model.weight.detach().clone()

    hard = weight()
    assert hook(model, 0.0) == {"hardness": 0.0}
    top = quantizer.step(latent, bits) * (2 ** (bits - 1) - 1 if bits > 1 else 1)
    soft = latent.detach().clamp(-top, top) if kind == "parq" else latent.detach()
    torch.testing.assert_close(weight(), soft)
    distance = [(weight() - hard).abs().mean().item() for done in (0.0, 0.2, 0.4, 0.45) if hook(model, done)]
    assert distance == sorted(distance, reverse=True) and distance[-1] < 0.5 * distance[0]
    model.eval()
    assert torch.equal(weight(), hard), "what is decoded is always on the grid"
    model.train()
    assert hook(model, 0.5) == hook(model, 0.9) == {"hardness": 1.0} and torch.equal(weight(), hard)


@pytest.mark.parametrize(("kind", "share"), [("blend", 0.4), ("parq", 1.0)])
def test_gradients(kind: str, share: float) -> None:
    gradients = []
    for hardness in (1.0, 0.4):
        torch.manual_seed(0)
        model = torch.nn.Linear(24, 12)
        quantize_model(model, QuantConfig.preset("lossless16", precisions=(2,)))
        [quantizer] = [q for q in find_quantizers(model) if q.name == "weight"]
        quantizer.relaxation, quantizer.hardness = kind, hardness
        factors = torch.randn(12, 24, generator=torch.Generator().manual_seed(1))
        with use_precision(model, 2):
            (model.weight * factors).sum().backward()
        gradients.append((model.parametrizations.weight.original.grad, quantizer.alphas["2"].grad))
        torch.testing.assert_close(gradients[-1][0], factors)
    torch.testing.assert_close(gradients[1][1], share * gradients[0][1])


def test_nothing_happens_by_default() -> None:
    model = torch.nn.Linear(8, 8)
    quantize_model(model, QuantConfig.preset("lossless16", precisions=(1,)))
    assert rising_hardness(model, OptimConfig())(model, 0.0) == {}
    assert all(q.hardness == 1.0 for q in find_quantizers(model))
