"""LinearQuantizer: weights on an even grid, `codes * alpha * s`, with one learned alpha per tensor and precision.

The grids are in core/grids.py, s in scales.py, the gradients in fake_quant.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowbit_k2.core.grids import HALF_BITS, max_code
from lowbit_k2.errors import UserError
from lowbit_k2.quant.config import TensorScheme, low_bits
from lowbit_k2.quant.fake_quant import Spec, fake_quantize_all
from lowbit_k2.quant.least_squares import nearest_alpha
from lowbit_k2.quant.projection import expand_steps, project
from lowbit_k2.quant.quantizer import WeightQuantizer, register_quantizer
from lowbit_k2.quant.scales import (
    FITTED,
    RUNNING_MOMENTUM,
    STATISTICS,
    measure,
    measure_tensors,
    scale_from_statistic,
)


class LinearQuantizer(WeightQuantizer):
    """W_hat = codes * alpha * s, see fake_quant.py.

    Attributes:
      alphas: one learnable scalar per low precision, keyed by str(bits); 1 until `fit`.
      statistic: buffer of the statistics that are stored (absmean, lsq, running-absmax); absent with 2std-clipped.
    """

    def __init__(self, weight: Tensor, scheme: TensorScheme, *args: Any, **options: Any) -> None:
        super().__init__(weight, scheme, *args, **options)
        one, bits = torch.ones((), dtype=weight.dtype, device=weight.device), low_bits(self.bits)
        self.alphas = nn.ParameterDict({str(b): nn.Parameter(one.clone(), not self.frozen) for b in bits})
        stored = bool(bits) and STATISTICS[scheme.scale].is_stored
        self.register_buffer("statistic", measure(weight, scheme.scale, scheme.granularity) if stored else None)

    @property
    def follows(self) -> bool:
        """Whether the statistic is a running one."""
        return STATISTICS[self.scheme.scale].updates == "running"

    def quantize(self, weight: Tensor, bits: int) -> Tensor:
        spec = Spec(bits, self.scheme.granularity, self.rule)
        return fake_quantize_all([weight], [self.alphas[str(bits)]], [self.step(weight, bits)], [spec])[0]

    def scale(self, weight: Tensor, bits: int) -> Tensor:
        """s of each group at a precision, from the present weights or from the stored statistic. No gradient."""
        statistic = self.statistic
        if statistic is None:
            statistic = measure(weight, self.scheme.scale, self.scheme.granularity)
        return scale_from_statistic(statistic, self.scheme.scale, bits)

    @torch.no_grad()
    def step(self, weight: Tensor, bits: int) -> Tensor:
        """Effective step alpha * s of each group."""
        return self.alphas[str(bits)] * self.scale(weight, bits)

    @torch.no_grad()
    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """int8, by the very projection that `quantize_all` uses."""
        step = expand_steps(self.step(weight, bits), weight.shape, self.scheme.granularity)
        return project(weight, step, bits).to(torch.int8)

    @torch.no_grad()
    def fit(self, weight: Tensor) -> None:
        """Set every alpha to the one whose grid is nearest to `weight`, see least_squares.py."""
        for bits, alpha in self.alphas.items():
            alpha.copy_(nearest_alpha(weight, self.scale(weight, int(bits)), int(bits), self.scheme.granularity))

    @torch.no_grad()
    def set_steps(self, bits: int, step: Tensor) -> None:
        """Make `step`, one for each group, the one that `step(weight, bits)` gives from now on, bit for bit.

        Other precisions of the tensor get the same clipping range.

        Raises:
          UserError: the steps follow from the weights, since the scale is another than "fitted".
        """
        if self.scheme.scale != FITTED:
            raise UserError(f"{self.name}: its steps are those of {self.scheme.scale}: give its role scale {FITTED!r}")
        self.statistic.copy_(step)
        for other, alpha in self.alphas.items():
            alpha.fill_(max_code(bits) / max_code(int(other)))

    def learned(self, bits: int) -> list[nn.Parameter]:
        return [self.alphas[str(bits)]]

    def state(self, bits: int) -> list[Tensor]:
        return [self.alphas[str(bits)], *([] if self.statistic is None else [self.statistic])]

    def check_export(self, bits: int) -> None:
        alpha = self.alphas[str(bits)].item()
        if not alpha > 0.0:
            raise UserError(
                f"{self.name}: its alpha at {bits} bits is {alpha}, not positive: lower the learning rate of alphas"
            )

    @torch.no_grad()
    def rederive(self, weight: Tensor) -> None:
        """Set a running statistic to that of the present weights; those set once at the start stay."""
        if self.statistic is not None and self.follows:
            self.statistic.copy_(measure(weight, self.scheme.scale, self.scheme.granularity))

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """Move a running statistic towards that of the present weights."""
        now = measure(weight, self.scheme.scale, self.scheme.granularity)
        self.statistic.mul_(RUNNING_MOMENTUM).add_(now, alpha=1.0 - RUNNING_MOMENTUM)

    @classmethod
    def quantize_all(
        cls, quantizers: Sequence[LinearQuantizer], weights: Sequence[Tensor], on_backward: Callable[[], object]
    ) -> list[Tensor]:
        """One node of the autograd graph for all, see `fake_quantize_all`."""
        low = [q.active_bits != HALF_BITS for q in quantizers]
        for quantizer, weight, is_low in zip(quantizers, weights, low, strict=True):
            if is_low and quantizer.follows and quantizer.training and not quantizer.frozen:
                quantizer.follow(weight)
        alphas = [q.alphas[str(q.active_bits)] if is_low else None for q, is_low in zip(quantizers, low, strict=True)]
        specs = [Spec(q.active_bits, q.scheme.granularity, q.rule) for q in quantizers]
        steps = steps_together(quantizers, weights)
        return fake_quantize_all(weights, alphas, steps, specs, on_backward)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scheme.scale}"


@torch.no_grad()
def steps_together(quantizers: Sequence[LinearQuantizer], weights: Sequence[Tensor]) -> list[Tensor | None]:
    """`step` of each quantizer at its active precision, None at 16 bits, bit for bit.

    Tensors with one step each are worked out together, for the sake of small models, whose time is in the dispatch.
    """
    steps: list[Tensor | None] = [None] * len(quantizers)
    groups: dict[tuple, list[int]] = {}
    for i, (quantizer, weight) in enumerate(zip(quantizers, weights, strict=True)):
        if quantizer.active_bits == HALF_BITS:
            continue
        if quantizer.scheme.granularity == "tensor":
            key = (quantizer.scheme.scale, quantizer.active_bits, weight.dtype, weight.device)
            groups.setdefault(key, []).append(i)
        else:
            steps[i] = quantizer.step(weight, quantizer.active_bits)
    for (scale, bits, *_), members in groups.items():
        if STATISTICS[scale].is_stored:
            statistics = torch.stack([quantizers[i].statistic for i in members])
        else:
            statistics = measure_tensors([weights[i] for i in members], scale)
        alphas = torch.stack([quantizers[i].alphas[str(bits)] for i in members])
        found = alphas * scale_from_statistic(statistics, scale, bits)  # (members,)
        for i, step in zip(members, found.unbind(), strict=True):
            steps[i] = step
    return steps


register_quantizer("linear", LinearQuantizer)
