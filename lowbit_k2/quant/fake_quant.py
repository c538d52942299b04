"""Quantize-and-dequantize with the gradients of low-bit training (arXiv 2505.21245, section 2; LSQ, 1902.08153).

    W_hat = step * Proj(clip(W / step, -Qp, Qp)),    step = alpha * s,    x = W / step

`s` is a statistic without gradient (see scales.py), alpha a learned scalar. Neither gradient is the derivative of the
forward (a staircase): both are straight-through,

    dW_hat/dW     = 1                                          "identity" (the paper), or 1 where |x| < Qp, else 0
                                                               "clipped" (LSQ)
    dW_hat/dalpha = s * (Proj(x) - x   if |x| < Qp,            "chain": the true chain rule through step = alpha * s
                         sign(x) * Qp  otherwise)              "authors": with 1 / Qp in the place of s
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowbit_k2.core.grids import HALF_BITS, max_code
from lowbit_k2.quant.projection import expand_steps, project

ALPHA_GRADS = ("chain", "authors")
WEIGHT_GRADS = ("identity", "clipped")
ALPHA_GRAD_SCALES = ("none", "lsq")


class GradientRule(NamedTuple):
    """Which of the published gradients to use; `alpha_scale="lsq"` multiplies alpha's by 1 / sqrt(N * Qp)."""

    alpha: str = "chain"
    weight: str = "identity"
    alpha_scale: str = "none"


DEFAULT_RULE = GradientRule()


class Spec(NamedTuple):
    """How one tensor is quantized: at 1 to 8 bits, or rounded to fp16 (16)."""

    bits: int
    granularity: str = "tensor"
    rule: GradientRule = DEFAULT_RULE


def fake_quantize_all(
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor | None],
    steps: Sequence[Tensor | None],
    specs: Sequence[Spec],
    on_backward: Callable[[], object] = lambda: None,
) -> list[Tensor]:
    """Weights on their grids, in float: exactly `codes * step`, or the nearest fp16 numbers.

    One node of the autograd graph serves all tensors: a model has hundreds, and a node for each would cost a small
    model more than the arithmetic does. Its backward comes last in the pass.

    Args:
      weights: latent weights, any shapes; they get the straight-through gradient.
      alphas: learned scalars, shape (); they get the gradient above. None at 16 bits.
      steps: alpha * s per group, shape `group_shape(weight.shape, granularity)`, without gradient. None at 16 bits.
      on_backward: called when the gradients have been taken, and the graph is no longer there.
    Returns:
      tensors of the shapes and types of `weights`.
    """
    learned = [alpha for alpha in alphas if alpha is not None]
    return list(_FakeQuantize.apply(specs, steps, on_backward, *weights, *learned))


def fake_quantize(
    weight: Tensor,
    alpha: Tensor,
    scale: Tensor,
    bits: int,
    granularity: str = "tensor",
    rule: GradientRule = DEFAULT_RULE,
) -> Tensor:
    """`fake_quantize_all` of one tensor, from its alpha and its scale statistic s (one per group, no gradient)."""
    return fake_quantize_all([weight], [alpha], [alpha.detach() * scale], [Spec(bits, granularity, rule)])[0]


def round_to_half(weight: Tensor) -> Tensor:
    """Round to the nearest fp16 number, in the type of `weight`; the gradient passes unchanged."""
    return fake_quantize_all([weight], [None], [None], [Spec(HALF_BITS)])[0]


class _FakeQuantize(torch.autograd.Function):
    """Few full-size passes: quantizing a layer must stay a few percent of running it (see tests and benchmarks)."""

    @staticmethod
    def forward(
        ctx: Any,
        specs: Sequence[Spec],
        steps: Sequence[Tensor | None],
        on_backward: Callable[[], object],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        weights = tensors[: len(specs)]
        quantized = tuple(_value(w, step, spec) for w, step, spec in zip(weights, steps, specs, strict=True))
        ctx.save_for_backward(*tensors, *quantized)
        ctx.specs, ctx.steps, ctx.on_backward = specs, steps, on_backward
        ctx.set_materialize_grads(False)
        return quantized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(ctx.specs)
        saved = ctx.saved_tensors
        weights, alphas, quantized = saved[:count], iter(saved[count:-count]), saved[-count:]
        wanted_weights, wanted_alphas = ctx.needs_input_grad[3 : 3 + count], iter(ctx.needs_input_grad[3 + count :])
        grad_weights: list[Tensor | None] = []
        grad_alphas: list[Tensor | None] = []
        numbers = _as_numbers(ctx.steps)
        for i, spec in enumerate(ctx.specs):
            if spec.bits == HALF_BITS:
                grad_weights.append(grads[i])
                continue
            alpha, wanted = next(alphas), (wanted_weights[i], next(wanted_alphas))
            if grads[i] is None:  # this pass did not use the tensor
                grad_weights.append(None)
                grad_alphas.append(None)
                continue
            grad, weight, step = grads[i], weights[i], numbers[i]
            if step is None:
                step = expand_steps(ctx.steps[i], weight.shape, spec.granularity)
            clipped = spec.rule.weight == "clipped"
            passed = _inside(grad, weight, step, max_code(spec.bits)) if clipped and wanted[0] else grad
            grad_weights.append(passed if wanted[0] else None)
            grad_alphas.append(_alpha_gradient(grad, weight, quantized[i], step, alpha, spec) if wanted[1] else None)
        ctx.on_backward()
        return None, None, None, *grad_weights, *grad_alphas


def _value(weight: Tensor, step: Tensor | None, spec: Spec) -> Tensor:
    """codes * step."""
    if spec.bits == HALF_BITS:
        return weight.half().to(weight.dtype)
    step = expand_steps(step, weight.shape, spec.granularity)
    if spec.bits == 1:  # the same in two passes instead of five; -0.0 + 0.0 = +0.0, whose code is +1
        value = weight + 0.0
        return torch.copysign(step, value, out=value)
    return project(weight, step, spec.bits).mul_(step)


def _as_numbers(steps: Sequence[Tensor | None]) -> list[float | None]:
    """Steps of shape () as Python numbers, fetched together: on a GPU each fetch would wait for it. Others: None."""
    chosen = [i for i, step in enumerate(steps) if step is not None and step.dim() == 0]
    numbers: list[float | None] = [None] * len(steps)
    if chosen:
        for i, number in zip(chosen, torch.stack([steps[i] for i in chosen]).tolist(), strict=True):
            numbers[i] = number
    return numbers


def _inside(grad: Tensor, weight: Tensor, step: Tensor | float, top: int) -> Tensor:
    """The gradient where |x| < top, 0 elsewhere; one pass where the step is a number."""
    if isinstance(step, float):
        return torch.ops.aten.hardtanh_backward(grad, weight, -step * top, step * top)
    return (weight.abs() < step * top).to(grad.dtype).mul_(grad)


def _alpha_gradient(
    grad: Tensor, weight: Tensor, quantized: Tensor, step: Tensor | float, alpha: Tensor, spec: Spec
) -> Tensor:
    """Sum over the tensor of grad * dW_hat/dalpha, shape ().

    alpha * s * (Proj(x) - x where |x| < top, Proj(x) elsewhere) = W_hat - (W where |x| < top, 0 elsewhere), which takes
    one full-size buffer and two inner products.
    """
    if spec.rule.alpha == "authors":
        grad = grad / (step * max_code(spec.bits))
    inside = _inside(grad, weight, step, max_code(spec.bits))
    result = torch.dot(grad.reshape(-1), quantized.reshape(-1)) - torch.dot(inside.reshape(-1), weight.reshape(-1))
    if spec.rule.alpha == "chain":  # the formula has s where the sum above has the step, alpha * s
        result = result / alpha
    if spec.rule.alpha_scale == "lsq":
        result = result / math.sqrt(weight.numel() * max_code(spec.bits))
    return result
