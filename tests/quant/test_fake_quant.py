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

from lowbit_k2.core.grids import LOW_BITS, group_shape
from lowbit_k2.quant.fake_quant import GradientRule, Spec, fake_quantize, fake_quantize_all, round_to_half

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
    if rule.alpha == "authors":  # same value, but d step / d alpha = 1 / Qp
        step = step.detach() + (alpha - alpha.detach()) / top
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


def test_tensors_quantized_together_are_those_quantized_alone() -> None:
    """Values, gradients, a tensor that the pass does not use, one that is frozen, and the call at the end."""
    specs = [Spec(1), Spec(2, "channel"), Spec(16), Spec(4, "block64"), Spec(2), Spec(16), Spec(1)]
    shapes = [(6, 9), (5, 8), (7,), (3, 100), (4, 4), (3, 3), (2, 70)]
    unused, frozen = 4, 6
    torch.manual_seed(0)
    cases = []
    for i, (spec, shape) in enumerate(zip(specs, shapes, strict=True)):
        scale = torch.rand(group_shape(shape, spec.granularity)) + 0.5
        cases.append(
            (torch.randn(shape, requires_grad=i != frozen), torch.tensor(0.7, requires_grad=i != frozen), scale)
        )
    grads = [torch.randn(shape) for shape in shapes]
    low = [spec.bits < 16 for spec in specs]
    alphas = [alpha if is_low else None for (_, alpha, _), is_low in zip(cases, low, strict=True)]
    steps = [alpha.detach() * scale if is_low else None for (_, alpha, scale), is_low in zip(cases, low, strict=True)]
    calls: list[int] = []
    together = fake_quantize_all([w for w, _, _ in cases], alphas, steps, specs, lambda: calls.append(1))
    used = [i for i in range(len(specs)) if i != unused]
    torch.autograd.backward([together[i] for i in used], [grads[i] for i in used])
    assert calls == [1] and cases[unused][0].grad is None and cases[frozen][0].grad is None
    for i in used:
        weight, alpha, scale = (t.detach().clone() for t in cases[i])
        weight.requires_grad_(), alpha.requires_grad_()
        spec = specs[i]
        alone = fake_quantize(weight, alpha, scale, *spec) if low[i] else round_to_half(weight)
        assert torch.equal(alone, together[i])
        alone.backward(grads[i])
        if i != frozen:
            assert torch.equal(weight.grad, cases[i][0].grad)
            assert not low[i] or torch.equal(alpha.grad, cases[i][1].grad)
