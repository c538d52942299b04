"""Quantize-and-dequantize with the gradients of low-bit training (arXiv 2505.21245, section 2; LSQ, 1902.08153).

    W_hat = step * Proj(clip(W / step, -Qp, Qp)),    step = alpha * s,    x = W / step

`s` is a statistic without gradient (see scales.py), alpha a learned scalar. Neither gradient is the derivative of the
forward (a staircase): both are straight-through,

    dW_hat/dW     = 1                                          "identity" (the paper), or 1 where |x| < Qp, else 0
                                                               "clipped" (LSQ)
    dW_hat/dalpha = s * (Proj(x) - x   if |x| < Qp,            "chain": the true chain rule through step = alpha * s
                         sign(x) * Qp  otherwise)              "authors": the same without the factor s
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowbit_k2.quant.projection import just_below, max_code, project, spread

ALPHA_GRADS = ("chain", "authors")
WEIGHT_GRADS = ("identity", "clipped")
ALPHA_GRAD_SCALES = ("none", "lsq")


class GradientRule(NamedTuple):
    """Which of the published gradients to use; `alpha_scale="lsq"` multiplies alpha's by 1 / sqrt(N * Qp)."""

    alpha: str = "chain"
    weight: str = "identity"
    alpha_scale: str = "none"


DEFAULT_RULE = GradientRule()


def fake_quantize(
    weight: Tensor,
    alpha: Tensor,
    scale: Tensor,
    bits: int,
    granularity: str = "tensor",
    rule: GradientRule = DEFAULT_RULE,
) -> Tensor:
    """Weights on the grid of `bits`, in float: exactly `codes * (alpha * scale)`.

    Args:
      weight: latent weights, any shape; gets the straight-through gradient.
      alpha: learned scalar, shape (); gets the gradient above.
      scale: s per group, shape `group_shape(weight.shape, granularity)`; no gradient.
      bits: 1 to 8.
    Returns:
      shape and type of `weight`.
    """
    return _FakeQuantize.apply(weight, alpha, scale, bits, granularity, rule)


def round_to_half(weight: Tensor) -> Tensor:
    """Round to the nearest fp16 number, in the type of `weight`; the gradient passes unchanged."""
    return _RoundToHalf.apply(weight)


class _FakeQuantize(torch.autograd.Function):
    """Few full-size passes: quantizing a layer must stay a few percent of running it (see tests and benchmarks)."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, alpha: Tensor, scale: Tensor, bits: int, granularity: str, rule: GradientRule
    ) -> Tensor:
        step = spread(alpha * scale, weight.shape, granularity)
        quantized = project(weight, step, bits).mul_(step)
        ctx.save_for_backward(weight, quantized, alpha, scale)
        ctx.bits, ctx.granularity, ctx.rule = bits, granularity, rule
        return quantized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, quantized, alpha, scale = ctx.saved_tensors
        want_weight, want_alpha = ctx.needs_input_grad[:2]
        step = spread(alpha * scale, weight.shape, ctx.granularity)
        top = max_code(ctx.bits)
        grad_weight = grad if want_weight else None
        if want_weight and ctx.rule.weight == "clipped":
            grad_weight = (weight / step).abs_().lt_(top).mul_(grad)
        grad_alpha = None
        if want_alpha:
            error = _step_error(weight, quantized, step, top)
            if ctx.rule.alpha == "authors":
                error.div_(step)
            grad_alpha = _inner(grad, error)
            if ctx.rule.alpha == "chain":  # s * Proj(x) = W_hat / alpha, and likewise s * x = W / alpha
                grad_alpha = grad_alpha / alpha
            if ctx.rule.alpha_scale == "lsq":
                grad_alpha = grad_alpha / math.sqrt(weight.numel() * top)
        return grad_weight, grad_alpha, None, None, None, None


def _step_error(weight: Tensor, quantized: Tensor, step: Tensor, top: int) -> Tensor:
    """step * (Proj(x) - x) where |x| < top, and step * Proj(x) = step * sign(x) * top elsewhere.

    Written as `quantized - W + (W where |x| >= top)` in a single full-size buffer: allocating a second one costs more
    than all the arithmetic. hardshrink(x, c) keeps x where |x| > c and is 0 elsewhere; c is just below top.
    """
    buffer = weight / step
    torch.ops.aten.hardshrink.out(buffer, just_below(top, buffer.dtype), out=buffer)
    return buffer.mul_(step).sub_(weight).add_(quantized)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products over all entries, shape ()."""
    return torch.dot(a.reshape(-1), b.reshape(-1))


class _RoundToHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.half().to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
