"""WeightQuantizer: the parametrization that stands between a latent weight and everyone who reads it.

`torch.nn.utils.parametrize` calls it whenever `module.weight` is read, so a weight cannot escape quantization by being
passed to a functional. It holds one alpha per low precision and the scale statistic, and reads which precision is
active from its own attribute; `use_precision` (switching.py) sets that, and lends it a cache for the length of a pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowbit_k2.quant.config import TensorScheme, low_bits
from lowbit_k2.quant.fake_quant import DEFAULT_RULE, GradientRule, fake_quantize, round_to_half
from lowbit_k2.quant.projection import FLOAT_BITS, HALF_BITS, project, spread
from lowbit_k2.quant.scales import RUNNING_MOMENTUM, STORED_STATISTICS, measure, scale_from_statistic


class PassCache(dict):
    """Quantized weights of one pass: {quantizer: (stamp, tensor)}.

    It holds tensors with a graph, which cannot be deep-copied: the copy of a model taken inside a pass has no cache.
    """

    def __deepcopy__(self, memo: dict) -> None:
        return None


class WeightQuantizer(nn.Module):
    """Quantizes one weight tensor at the active precision.

    Attributes:
      name, role: of the parameter, `encoder.layers.0.ff1.w1.weight`, `encoder_linear`.
      bits: precisions of the tensor; the first is active until `use_precision` says otherwise.
      switched: whether the tensor follows `use_precision`.
      alphas: one learnable scalar per low precision, keyed by str(bits), starting at 1.
      statistic: buffer of the statistics that are stored (absmean, lsq, running-absmax); absent with 2std-clipped.
    """

    def __init__(
        self,
        weight: Tensor,
        scheme: TensorScheme,
        name: str = "weight",
        role: str = "encoder_linear",
        switched: bool = True,
        rule: GradientRule = DEFAULT_RULE,
    ) -> None:
        super().__init__()
        self.name, self.role, self.switched, self.scheme, self.rule = name, role, switched, scheme, rule
        self.bits = scheme.bits
        self.active_bits = scheme.bits[0]
        self.pass_cache: PassCache | None = None
        self.previous_codes: dict[int, Tensor] = {}  # of the last `quant_statistics`
        options = {"dtype": weight.dtype, "device": weight.device}
        self.alphas = nn.ParameterDict({str(b): nn.Parameter(torch.ones((), **options)) for b in low_bits(self.bits)})
        stored = bool(self.alphas) and scheme.scale in STORED_STATISTICS
        self.register_buffer("statistic", measure(weight, scheme.scale, scheme.granularity) if stored else None)

    def forward(self, weight: Tensor) -> Tensor:
        """Latent weight -> the weight used by the model; computed once per pass inside `use_precision`."""
        if self.pass_cache is None or self.active_bits == FLOAT_BITS:
            return self._quantize(weight)
        entry = self.pass_cache.get(self)
        if entry is not None and entry[0] == self._stamp(weight):
            return entry[1]
        quantized = self._quantize(weight)
        self.pass_cache[self] = (self._stamp(weight), quantized)
        if quantized.requires_grad:  # a backward frees its graph: the next forward needs a new one
            quantized.register_hook(self._forget_in(self.pass_cache))
        return quantized

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
        """Integer codes int8, shape of `weight`, by the very projection that `forward` uses."""
        step = spread(self.step(weight, bits), weight.shape, self.scheme.granularity)
        return project(weight, step, bits).to(torch.int8)

    @torch.no_grad()
    def rederive(self, weight: Tensor) -> None:
        """Set a running statistic to that of the present weights; those set once at the start stay."""
        if self.statistic is not None and self.scheme.scale == "running-absmax":
            self.statistic.copy_(measure(weight, self.scheme.scale, self.scheme.granularity))

    def extra_repr(self) -> str:
        return f"{self.name}, bits={self.bits}, active={self.active_bits}, scale={self.scheme.scale}"

    def _quantize(self, weight: Tensor) -> Tensor:
        bits = self.active_bits
        if bits == FLOAT_BITS:
            return weight
        if bits == HALF_BITS:
            return round_to_half(weight)
        with torch.autocast(weight.device.type, enabled=False):  # whatever a statistic is made of
            if self.training and self.scheme.scale == "running-absmax":
                self._follow_absmax(weight)
            alpha, scale = self.alphas[str(bits)], self.scale(weight, bits)
            return fake_quantize(weight, alpha, scale, bits, self.scheme.granularity, self.rule)

    @torch.no_grad()
    def _follow_absmax(self, weight: Tensor) -> None:
        now = measure(weight, self.scheme.scale, self.scheme.granularity)
        self.statistic.mul_(RUNNING_MOMENTUM).add_(now, alpha=1.0 - RUNNING_MOMENTUM)

    def _forget_in(self, cache: PassCache) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            cache.pop(self, None)

        return hook

    def _stamp(self, weight: Tensor) -> tuple:
        """Everything that a cached weight depends on; optimizers and load_state_dict raise the version counters."""
        tensors = [weight, *self.alphas.values()] + ([] if self.statistic is None else [self.statistic])
        versions = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), self.training)
        return (self.active_bits, weight.requires_grad, modes, versions)
