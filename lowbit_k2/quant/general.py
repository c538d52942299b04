"""GeneralQuantizer, "gq": each weight is an entry of a mu-law table times a scale (arXiv 2210.09188).

    W_hat = scale * z'[codes],    codes = argmin_j |W / scale - z'_j|          tables: soft_assignment.py

Nothing of it is learned by gradient: `GeneralQuantization` applies it to the weights now and then while they are
trained in float (`train/gq.py` does so with a `Trainer`). The paper does not say what becomes of kernels that leave
[-1, 1]; so they may have a scale:

    none           1, as the equations are printed: weights beyond the table end at -1 or 1
    power-of-two   the least power of two that no weight exceeds: a shift, where integers are multiplied
    absmax         max|W|

In a run that names one precision, the model has the latent weights themselves in train mode; every application
overwrites them by wbar, the last one by W_hat. Where branches run at several precisions, one tensor cannot lie on all
of their tables: then latents are not overwritten, and a branch at b bits has wbar at b bits and the alpha of the
update, with a straight-through gradient. A model without `GeneralQuantization`, or in eval mode, has W_hat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowbit_k2.core.grids import LOW_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.quant.codebook import nearest
from lowbit_k2.quant.config import TensorScheme, low_bits
from lowbit_k2.quant.quantizer import WeightQuantizer, register_quantizer
from lowbit_k2.quant.scales import SMALLEST_SCALE
from lowbit_k2.quant.soft_assignment import FIRST_MU, assigned, choose_mu, mu_law_table
from lowbit_k2.quant.switching import Assignment, latent_weights, use_precision

GQ_SCALES = ("none", "power-of-two", "absmax")


class GeneralQuantizer(WeightQuantizer):
    """See above.

    Attributes:
      mu: buffer, one number for each low precision, in their order; 8 at first.
      scale: buffer, shape ().
      alpha: of the soft assignment in train mode; None: hard. Nobody stores it: it follows from the update.
    """

    scales = GQ_SCALES
    granularities = ("tensor",)
    is_index = True
    zero_code = None

    def __init__(self, weight: Tensor, scheme: TensorScheme, *args: Any, **options: Any) -> None:
        super().__init__(weight, scheme, *args, **options)
        self.alpha: float | None = None
        low = low_bits(self.bits)
        self.register_buffer("mu", torch.full((len(low),), FIRST_MU, dtype=weight.dtype, device=weight.device))
        self.register_buffer("scale", measure_scale(weight, scheme.scale))

    def quantize(self, weight: Tensor, bits: int) -> Tensor:
        if self.training and self.alpha is not None:
            return _StraightThrough.apply(weight, lambda latent: self.soft(latent, bits, self.alpha))
        return _StraightThrough.apply(weight, lambda latent: self.hard(latent, bits))

    @torch.no_grad()
    def hard(self, weight: Tensor, bits: int) -> Tensor:
        """W_hat."""
        table = self.table(bits)
        return table[nearest(weight, table).long()]

    @torch.no_grad()
    def soft(self, weight: Tensor, bits: int, alpha: float) -> Tensor:
        """wbar."""
        return assigned(weight / self.scale, self._unscaled(bits), alpha).mul_(self.scale)

    @torch.no_grad()
    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """uint8 places in the table."""
        return nearest(weight, self.table(bits))

    def step(self, weight: Tensor, bits: int) -> Tensor:
        return torch.ones((), dtype=torch.float32)

    @torch.no_grad()
    def table(self, bits: int) -> Tensor:
        return self._unscaled(bits).to(self.scale) * self.scale

    def _unscaled(self, bits: int) -> Tensor:
        return mu_law_table(self.mu[low_bits(self.bits).index(bits)], bits)

    @torch.no_grad()
    def choose(self, weight: Tensor, bits: Sequence[int], alpha: float | None) -> None:
        """Scale, and mu at each of `bits`, anew for these weights; alpha None: for a hard assignment."""
        self.scale.copy_(measure_scale(weight, self.scheme.scale))
        scaled, low = weight / self.scale, low_bits(self.bits)
        for b in bits:
            place = low.index(b)
            self.mu[place] = choose_mu(scaled, b, alpha, float(self.mu[place]))

    @torch.no_grad()
    def lies_on_table(self, weight: Tensor) -> bool:
        """Whether a hard assignment at one of the precisions leaves the weights as they are."""
        return any(torch.equal(self.hard(weight, b), weight) for b in low_bits(self.bits))

    def fit(self, weight: Tensor) -> None:
        """Tables for a hard assignment."""
        self.rederive(weight)

    @torch.no_grad()
    def rederive(self, weight: Tensor) -> None:
        """Tables for a hard assignment, unless the weights lie on theirs: those of a finished training stay."""
        if not weight.is_meta and low_bits(self.bits) and not self.lies_on_table(weight):
            self.choose(weight, low_bits(self.bits), None)

    def state(self, bits: int) -> list[Tensor]:
        return [self.mu, self.scale]

    def check_export(self, bits: int) -> None:
        if not torch.isfinite(self.table(bits)).all():
            raise UserError(f"{self.name}: its table at {bits} bits holds numbers that are not finite")


class GeneralQuantization:
    """Applies the General Quantizer to the tensors of a model that have it; frozen ones are left out."""

    def __init__(self, model: nn.Module, assignments: Sequence[Assignment]) -> None:
        """
        Args:
          model: with quantizers "gq".
          assignments: the precisions that are trained, as `use_precision` takes them. With a single one, weights are
            overwritten.

        Raises:
          UserError: a precision that the model does not have, or no such tensor.
        """
        self.overwrites = len(assignments) == 1
        self.tensors: dict[GeneralQuantizer, tuple[Tensor, set[int]]] = {}
        for assignment in assignments:
            with use_precision(model, assignment):
                for quantizer, weight in latent_weights(model).items():
                    if isinstance(quantizer, GeneralQuantizer) and quantizer.active_bits in LOW_BITS:
                        self.tensors.setdefault(quantizer, (weight, set()))[1].add(quantizer.active_bits)
        self.tensors = {q: found for q, found in self.tensors.items() if not q.frozen}
        if not self.tensors:
            raise UserError("no tensor of 1 to 8 bits has the quantizer gq: choose another precision or quantization")
        for quantizer in self.tensors:
            quantizer.float_in_training = self.overwrites

    def set_alpha(self, alpha: float | None) -> None:
        """What branches at several precisions see from now on."""
        for quantizer in self.tensors:
            quantizer.alpha = alpha

    @torch.no_grad()
    def apply(self, alpha: float | None) -> float:
        """Choose scales and mu, and overwrite the weights where there is one precision; None: hard.

        Returns:
          ||wbar - w|| / ||w|| before, over all tensors together, of each the lowest precision.
        """
        apart, whole = 0.0, 1e-300
        for quantizer, (weight, bits) in self.tensors.items():
            quantizer.choose(weight, sorted(bits), alpha)
            b = min(bits)
            value = quantizer.hard(weight, b) if alpha is None else quantizer.soft(weight, b, alpha)
            apart += float((value - weight).double().square().sum())
            whole += float(weight.double().square().sum())
            if self.overwrites:
                weight.copy_(value)
        return (apart / whole) ** 0.5


@torch.no_grad()
def measure_scale(weight: Tensor, kind: str) -> Tensor:
    """Scale of a tensor's table, shape (), by its name in `GQ_SCALES`; at least `SMALLEST_SCALE`."""
    if kind == "none" or weight.is_meta:
        return torch.ones((), dtype=weight.dtype, device=weight.device)
    low, high = torch.aminmax(weight.detach())
    largest = torch.maximum(high, -low).clamp(min=SMALLEST_SCALE)
    if kind == "absmax":
        return largest
    mantissa, exponent = torch.frexp(largest)  # mantissa in [0.5, 1)
    return torch.ldexp(torch.ones_like(largest), exponent - (mantissa == 0.5).to(exponent))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, value_of: Callable[[Tensor], Tensor]) -> Tensor:
        return value_of(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


register_quantizer("gq", GeneralQuantizer)
