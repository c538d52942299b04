"""SquashedQuantizer, "SqWQ" of arXiv 2301.00652: tanh brings weights into (-1, 1), a learned gain per row out again.

    W_hat = exp(g) Q(tanh(W / c)),    Q(t) = Proj(t Qp) / Qp,    Qp = max_code(bits)
    dW_hat/dW = exp(g) (1 - tanh^2(W / c)) / c      straight through Q
    dW_hat/dg = W_hat

and a penalty on each tensor, lambda ((std(W / c) - sigma)^2 + mean(W / c)^2). The paper has c = 1, which wants weights
of that size; here c is fixed at the start so that a float model's own weights begin with std(W / c) = sigma, and stay
what they are at 32 bits. The source at hand gives no sigma: tanh spreads logistic weights of deviation pi / sqrt(12)
evenly over (-1, 1), which uses all codes alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowbit_k2.core.grids import max_code
from lowbit_k2.errors import UserError
from lowbit_k2.quant.config import TensorScheme, low_bits
from lowbit_k2.quant.projection import expand_steps, project_
from lowbit_k2.quant.quantizer import WeightQuantizer, register_quantizer
from lowbit_k2.quant.scales import SMALLEST_SCALE, group_sums
from lowbit_k2.quant.switching import latent_weights

TARGET_STD = math.pi / math.sqrt(12.0)


class SquashedQuantizer(WeightQuantizer):
    """See above.

    Attributes:
      gains: g of each low precision, shape (rows,), keyed by str(bits).
      unit: buffer, c.
    """

    scales = ("squash",)
    granularities = ("channel",)

    def __init__(self, weight: Tensor, scheme: TensorScheme, *args: Any, **options: Any) -> None:
        super().__init__(weight, scheme, *args, **options)
        weight = weight.detach()
        spread = weight.std() if weight.numel() > 1 else weight.abs().sum()
        self.register_buffer("unit", (spread / TARGET_STD).clamp(min=SMALLEST_SCALE))
        start = self.unit.log().expand(len(weight))  # the slope of the whole is 1 at 0
        self.gains = nn.ParameterDict(
            {str(b): nn.Parameter(start.clone(), not self.frozen) for b in low_bits(self.bits)}
        )

    def quantize(self, weight: Tensor, bits: int) -> Tensor:
        return _Squash.apply(weight, self.gains[str(bits)], self.unit, bits)

    @torch.no_grad()
    def step(self, weight: Tensor, bits: int) -> Tensor:
        return _step(self.gains[str(bits)], bits)

    @torch.no_grad()
    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """int8."""
        return _codes(weight, self.unit, bits).to(torch.int8)

    @torch.no_grad()
    def fit(self, weight: Tensor) -> None:
        """Gains of least squared error, exp(g) / Qp = <W, codes> / <codes, codes> of a row; of 0s alone: as it is."""
        for key, gain in self.gains.items():
            codes = _codes(weight, self.unit, int(key))
            found = group_sums(weight * codes, "channel") / group_sums(codes.square(), "channel").clamp(min=1.0)
            gain.copy_(torch.where(found > 0, (found * max_code(int(key))).log(), gain.double()))

    def learned(self, bits: int) -> list[nn.Parameter]:
        return [self.gains[str(bits)]]

    def state(self, bits: int) -> list[Tensor]:
        return [self.gains[str(bits)], self.unit]

    def check_export(self, bits: int) -> None:
        step = _step(self.gains[str(bits)].detach(), bits)
        if not (torch.isfinite(step).all() and (step > 0).all()):
            raise UserError(f"{self.name}: a gain at {bits} bits is out of range: the training diverged")


def squash_penalty(model: nn.Module) -> Tensor:
    """Sum over all squashed tensors of (std(W / c) - sigma)^2 + mean(W / c)^2, shape (); lambda is the caller's.

    Raises:
      UserError: no tensor is squashed.
    """
    parts = []
    for quantizer, weight in latent_weights(model).items():
        if isinstance(quantizer, SquashedQuantizer) and not quantizer.frozen:
            x = weight / quantizer.unit
            parts.append((x.std() - TARGET_STD).square() + x.mean().square())
    if not parts:
        raise UserError("no weight is squashed: the penalty belongs to schemes with the quantizer squashed")
    return torch.stack(parts).sum()


def _step(gain: Tensor, bits: int) -> Tensor:
    return gain.exp() / max_code(bits)


def _codes(weight: Tensor, unit: Tensor, bits: int) -> Tensor:
    return project_((weight / unit).tanh_().mul_(max_code(bits)), bits)


class _Squash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, gain: Tensor, unit: Tensor, bits: int) -> Tensor:
        value = _codes(weight, unit, bits).mul_(expand_steps(_step(gain, bits), weight.shape, "channel"))
        ctx.save_for_backward(weight, gain, unit, value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, gain, unit, value = ctx.saved_tensors
        grad_weight = grad_gain = None
        if ctx.needs_input_grad[0]:
            slope = 1.0 - (weight / unit).tanh_().square_()
            grad_weight = slope.mul_(grad).mul_(expand_steps(gain.exp() / unit, weight.shape, "channel"))
        if ctx.needs_input_grad[1]:
            grad_gain = (grad * value).flatten(1).sum(1)
        return grad_weight, grad_gain, None, None


register_quantizer("squashed", SquashedQuantizer)
