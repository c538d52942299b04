"""Elastic quantization of BiT (arXiv 2205.13016; on speech, 2301.00652): a learned scale and a learned threshold.

    u = (x - threshold) / step,    x_hat = step * Proj(clip(u, low, high)),    step = alpha * s, threshold = beta * s

The threshold is not added back. Codes: {-1, 1} at 1 bit and {-n .. n}, n = max_code(bits), above; {0 .. 2^bits - 1} of
tensors that are never negative. Straight through:

    dx_hat/dx     = 1          where low <= u < high, else 0    (of weights under the rule "identity": 1)
    dx_hat/dalpha = s (Proj(u) - u  there,  Proj(u) elsewhere)
    dx_hat/dbeta  = -s         there, else 0

alpha and beta are counted in units of s, so that one learning rate fits weights of 0.02 and softmax outputs of 1 / T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowbit_k2.core.grids import max_code
from lowbit_k2.quant.config import TensorScheme, low_bits
from lowbit_k2.quant.fake_quant import GradientRule
from lowbit_k2.quant.linear import LinearQuantizer
from lowbit_k2.quant.projection import project_
from lowbit_k2.quant.quantizer import WeightQuantizer, register_quantizer


class Grid(NamedTuple):
    """The codes of a precision, of both signs or from 0 on."""

    bits: int
    non_negative: bool = False

    @property
    def high(self) -> int:
        """Largest code, Qp."""
        return 2**self.bits - 1 if self.non_negative else max_code(self.bits)

    @property
    def low(self) -> int:
        return 0 if self.non_negative else -self.high

    def project_(self, u: Tensor) -> Tensor:
        """Nearest codes, in place."""
        return u.clamp_(0, self.high).round_() if self.non_negative else project_(u, self.bits)


def elastic_value(x: Tensor, step: Tensor, threshold: Tensor, grid: Grid) -> Tensor:
    """x_hat of any shape, in float32 (or float64) arithmetic and the type of `x`; no gradient."""
    wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
    return grid.project_((wide - threshold) / step).mul_(step).to(x.dtype)


def elastic_quantize(x: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, grid: Grid, rule: GradientRule) -> Tensor:
    """x_hat with the gradients above.

    Args:
      x: any shape.
      alpha, beta: learned, shape ().
      scale: s, shape (), without gradient.
      rule: `weight` "clipped" is the formula above; `alpha_scale` "lsq" multiplies both scalars' gradients by
        1 / sqrt(N Qp); `alpha` "authors" has 1 / Qp in the place of s.
    """
    if not torch.is_grad_enabled():
        return elastic_value(x, (alpha * scale).detach(), (beta * scale).detach(), grid)
    return _Elastic.apply(x, alpha, beta, scale, grid, rule)


class _Elastic(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor, grid: Grid, rule: GradientRule
    ) -> Tensor:
        ctx.save_for_backward(x, alpha, beta, scale)
        ctx.grid, ctx.rule = grid, rule
        return elastic_value(x, alpha * scale, beta * scale, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        x, alpha, beta, scale = ctx.saved_tensors
        grid, rule = ctx.grid, ctx.rule
        wide = grad if grad.dtype == torch.float64 else grad.float()
        u = (x.to(wide.dtype) - beta * scale) / (alpha * scale)
        inside = ((u >= grid.low) & (u < grid.high)).to(wide.dtype)
        passed = wide * inside
        factor = scale if rule.alpha == "chain" else 1.0 / grid.high
        if rule.alpha_scale == "lsq":
            factor = factor / math.sqrt(x.numel() * grid.high)
        codes = grid.project_(u.clone())
        grad_alpha = (wide * codes).sum() - (passed * u).sum() if ctx.needs_input_grad[1] else None
        grad_beta = -passed.sum() * factor if ctx.needs_input_grad[2] else None
        grad_x = (passed if rule.weight == "clipped" else wide).to(x.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, None if grad_alpha is None else grad_alpha * factor, grad_beta, None, None, None


class ElasticQuantizer(LinearQuantizer):
    """Of weights. At first sign(W - mean W) mean|W| at 1 bit, and step 2 mean|W| / sqrt(Qp), threshold 0 above.

    Attributes:
      betas: thresholds in units of s, one of each low precision, keyed by str(bits).
    """

    scales = ("lsq",)
    granularities = ("tensor",)
    zero_code = None  # of its 0s nothing is known: they lie at the threshold

    def __init__(self, weight: Tensor, scheme: TensorScheme, *args: Any, **options: Any) -> None:
        super().__init__(weight, scheme, *args, **options)
        start = {b: weight.detach().mean() / self.scale(weight, b) if b == 1 else 0.0 for b in low_bits(self.bits)}
        self.betas = nn.ParameterDict(
            {
                str(b): nn.Parameter(torch.zeros_like(self.alphas[str(b)]) + beta, not self.frozen)
                for b, beta in start.items()
            }
        )

    def scale(self, weight: Tensor, bits: int) -> Tensor:
        found = super().scale(weight, bits)
        return found / 2 if bits == 1 else found

    def quantize(self, weight: Tensor, bits: int) -> Tensor:
        alpha, beta = self.alphas[str(bits)], self.betas[str(bits)]
        return elastic_quantize(weight, alpha, beta, self.scale(weight, bits), Grid(bits), self.rule)

    @torch.no_grad()
    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """int8, by the very projection that `quantize` uses."""
        threshold = self.betas[str(bits)] * self.scale(weight, bits)
        return Grid(bits).project_((weight - threshold) / self.step(weight, bits)).to(torch.int8)

    def fit(self, weight: Tensor) -> None:
        """Its start is BiT's own."""

    def learned(self, bits: int) -> list[nn.Parameter]:
        return [*super().learned(bits), self.betas[str(bits)]]

    def state(self, bits: int) -> list[Tensor]:
        return [*super().state(bits), self.betas[str(bits)]]

    @classmethod
    def quantize_all(
        cls, quantizers: Sequence[WeightQuantizer], weights: Sequence[Tensor], on_backward: Callable[[], object]
    ) -> list[Tensor]:
        return WeightQuantizer.quantize_all.__func__(cls, quantizers, weights, on_backward)


register_quantizer("elastic", ElasticQuantizer)
