"""Values and gradients against the straight-through formula written out, in float64.

The straight-through gradient is not the derivative of the forward, so finite differences are no reference. What is
differentiated here by autograd is

    W - sg(W) + g(sg(W), alpha),    g = step * (xc + sg(Proj(xc) - xc)),    xc = clip(sg(W) / step)
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lowbit_k2.quant.fake_quant import GradientRule, fake_quantize, round_to_half
from lowbit_k2.quant.projection import LOW_BITS

GRANULARITIES = ["tensor", "channel", "block64"]


def full_size(scale: Tensor, shape: torch.Size, granularity: str) -> Tensor:
    """s of every weight, by index arithmetic."""
    rows, cols = shape[0], shape.numel() // shape[0]
    full = torch.empty(rows, cols, dtype=scale.dtype)
    for row, col in itertools.product(range(rows), range(cols)):
        full[row, col] = scale[{"tensor": (), "channel": (row,), "block64": (row, col // 64)}[granularity]]
    return full.view(shape)


def written_out(weight: Tensor, alpha: Tensor, s: Tensor, bits: int, rule: GradientRule) -> Tensor:
    table = torch.tensor([-1, 1] if bits == 1 else range(-max(1, 2 ** (bits - 1) - 1), max(2, 2 ** (bits - 1))))
    table = table.to(weight.dtype)
    frozen, top = weight.detach(), table.max()
    step = s * alpha
    if rule.alpha == "authors":  # same value, but d step / d alpha = 1
        step = step.detach() + alpha - alpha.detach()
    x = frozen / step
    inside = x.detach().abs() < top
    clipped = torch.where(inside, x, top * x.detach().sign())
    nearest = table[(clipped.detach()[..., None] - table).abs().argmin(-1)]
    g = step * (clipped + (nearest - clipped).detach())
    through = weight if rule.weight == "identity" else torch.where(inside, weight, frozen)
    return through - frozen + g


def random_case(seed: int, granularity: str, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, alpha, s per group, incoming gradient; a good part of the weights lies beyond the clipping range."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = randn(3, 10, 13)  # rows of 130
    groups = {"tensor": (), "channel": (3,), "block64": (3, 3)}[granularity]
    s = (0.5 + torch.rand(groups, generator=generator, dtype=torch.float64)) / max(1, 2 ** (bits - 1) - 1)
    return weight, torch.tensor(0.8, dtype=torch.float64), s, randn(3, 10, 13)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", LOW_BITS)
@pytest.mark.parametrize("rule", [GradientRule(a, w) for a in ("chain", "authors") for w in ("identity", "clipped")])
def test_value_and_gradients(bits: int, granularity: str, rule: GradientRule) -> None:
    weight, alpha, scale, grad = random_case(bits, granularity, bits)
    leaves = [(weight.clone().requires_grad_(), alpha.clone().requires_grad_()) for _ in range(2)]
    ours = fake_quantize(*leaves[0], scale, bits, granularity, rule)
    reference = written_out(*leaves[1], full_size(scale, weight.shape, granularity), bits, rule)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    ours.backward(grad)
    reference.backward(grad)
    for mine, theirs in zip(*leaves, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_formula_of_the_paper_element_by_element(bits: int) -> None:
    """dW_hat/dalpha = Proj(x) - x if |x| < max|Q|, sign(x) max|Q| otherwise; edges included. s = 1, alpha = 1."""
    top = {1: 1, 2: 1, 4: 7}[bits]
    one = torch.ones((), requires_grad=True)
    for value in (0.0, 0.2, -0.7, 0.999, float(top), -float(top), top + 0.5, -3.0 * top):
        weight = torch.tensor([value])
        (grad,) = torch.autograd.grad(fake_quantize(weight, one, torch.ones(()), bits).sum(), one)
        nearest = math.copysign(1.0, value) if bits == 1 else float(round(value))
        wanted = nearest - value if abs(value) < top else math.copysign(top, value)
        assert grad.item() == pytest.approx(wanted, abs=1e-6), (value, grad)


def test_lsq_gradient_scale() -> None:
    weight, alpha, scale, grad = random_case(0, "tensor", 4)
    alpha.requires_grad_()
    plain, scaled = (
        torch.autograd.grad(fake_quantize(weight, alpha, scale, 4, "tensor", rule), alpha, grad)[0]
        for rule in (GradientRule(), GradientRule(alpha_scale="lsq"))
    )
    torch.testing.assert_close(scaled, plain / math.sqrt(weight.numel() * 7))


def test_identity_gradient_is_the_incoming_gradient() -> None:
    weight, alpha, scale, grad = random_case(1, "tensor", 1)
    weight.requires_grad_()
    fake_quantize(weight, alpha, scale, 1).backward(grad)
    assert torch.equal(weight.grad, grad)


def test_strided_gradients() -> None:
    """A linear layer used through a transpose hands back a gradient that is not contiguous."""
    weight, scale = torch.randn(6, 9), torch.tensor(0.7)
    grads = []
    for grad in (torch.arange(54.0).view(9, 6).t(), torch.arange(54.0).view(9, 6).t().contiguous()):
        alpha = torch.ones((), requires_grad=True)
        fake_quantize(weight, alpha, scale, 2).backward(grad)
        grads.append(alpha.grad)
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("bits", LOW_BITS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_float32_values_are_codes_times_steps_bit_for_bit(bits: int, granularity: str) -> None:
    weight, alpha, scale, _ = (t.float() for t in random_case(2, granularity, bits))
    ours = fake_quantize(weight, alpha, scale, bits, granularity)
    step = full_size(alpha * scale, weight.shape, granularity)
    codes = (ours / step).round()
    assert codes.abs().max() <= max(1, 2 ** (bits - 1) - 1)
    product = codes.to(torch.int8).float() * step
    assert torch.equal(ours.view(torch.int32), product.view(torch.int32))


def test_round_to_half_passes_the_gradient() -> None:
    weight = (torch.randn(50) * 0.1).requires_grad_()
    rounded = round_to_half(weight)
    grad = torch.randn(50)
    rounded.backward(grad)
    assert torch.equal(rounded, weight.detach().half().float()) and not torch.equal(rounded, weight)
    assert torch.equal(weight.grad, grad)
