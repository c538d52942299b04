"""WeightQuantizer: the parametrization that stands between a latent weight and everyone who reads it.

`torch.nn.utils.parametrize` calls it whenever `module.weight` is read, so a weight cannot escape quantization by being
passed to a functional. It holds one alpha per low precision and the scale statistic, and reads which precision is
active from its own attribute; `use_precision` (switching.py) sets that, and lends it a cache for the length of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lowbit_k2.core.grids import FLOAT_BITS, HALF_BITS
from lowbit_k2.quant.config import TensorScheme, low_bits
from lowbit_k2.quant.fake_quant import DEFAULT_RULE, GradientRule, Spec, fake_quantize_all
from lowbit_k2.quant.projection import project, spread
from lowbit_k2.quant.scales import RUNNING_MOMENTUM, STORED_STATISTICS, measure, measure_tensors, scale_from_statistic


class PassCache:
    """Quantized weights of one pass, made together when the first of them is asked for."""

    def __init__(self, owners: Mapping[WeightQuantizer, ParametrizationList]) -> None:
        self.owners = owners
        self.values: dict[WeightQuantizer, tuple[tuple, Tensor]] = {}

    def get(self, quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
        """The value of `weight`, made anew when anything that it depends on has changed, or after a backward."""
        stamp = quantizer.stamp(weight)
        known = self.values.get(quantizer)
        if known is None or known[0] != stamp:
            self.fill()
            known = self.values.get(quantizer)
            stamp = quantizer.stamp(weight)  # a running statistic may have moved
        if known is None or known[0] != stamp:  # not the latent weight itself, but something made of it
            return quantize_together([quantizer], [weight])[0]
        return known[1]

    def fill(self) -> None:
        latents = {q: owner.original for q, owner in self.owners.items() if q.active_bits != FLOAT_BITS}
        quantized = quantize_together(list(latents), list(latents.values()), self.values.clear)
        self.values.update(
            {q: (q.stamp(latent), value) for (q, latent), value in zip(latents.items(), quantized, strict=True)}
        )

    def __deepcopy__(self, memo: dict) -> None:
        """It holds tensors with a graph, which cannot be copied: the copy of a model has no cache."""
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
        if self.active_bits == FLOAT_BITS:
            return weight
        if self.pass_cache is not None:
            return self.pass_cache.get(self, weight)
        return quantize_together([self], [weight])[0]

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

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """Move a running statistic towards that of the present weights."""
        now = measure(weight, self.scheme.scale, self.scheme.granularity)
        self.statistic.mul_(RUNNING_MOMENTUM).add_(now, alpha=1.0 - RUNNING_MOMENTUM)

    def stamp(self, weight: Tensor) -> tuple:
        """Everything that a cached weight depends on; optimizers and load_state_dict raise the version counters."""
        bits = self.active_bits
        modes = (bits, weight.requires_grad, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), self.training)
        if bits == HALF_BITS:
            return modes, _version(weight)
        statistic = None if self.statistic is None else _version(self.statistic)
        return modes, _version(weight), _version(self.alphas[str(bits)]), statistic

    def activate(self, bits: int, cache: PassCache | None) -> None:
        """Set precision and cache; past nn.Module's checks on attributes, which take longer than all else here."""
        self.__dict__.update(active_bits=bits, pass_cache=cache)


def quantize_together(
    quantizers: Sequence[WeightQuantizer], weights: Sequence[Tensor], on_backward: Callable[[], object] = lambda: None
) -> list[Tensor]:
    """Each weight at the active precision (not 32) of its quantizer; see `fake_quantize_all`."""
    with torch.autocast(weights[0].device.type, enabled=False):  # whatever a statistic is made of
        low = [q.active_bits != HALF_BITS for q in quantizers]
        for quantizer, weight, is_low in zip(quantizers, weights, low, strict=True):
            if is_low and quantizer.training and quantizer.scheme.scale == "running-absmax":
                quantizer.follow(weight)
        alphas = [q.alphas[str(q.active_bits)] if is_low else None for q, is_low in zip(quantizers, low, strict=True)]
        specs = [Spec(q.active_bits, q.scheme.granularity, q.rule) for q in quantizers]
        steps = steps_together(quantizers, weights)
        return fake_quantize_all(weights, alphas, steps, specs, on_backward)


@torch.no_grad()
def steps_together(quantizers: Sequence[WeightQuantizer], weights: Sequence[Tensor]) -> list[Tensor | None]:
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
        if scale in STORED_STATISTICS:
            statistics = torch.stack([quantizers[i].statistic for i in members])
        else:
            statistics = measure_tensors([weights[i] for i in members], scale)
        alphas = torch.stack([quantizers[i].alphas[str(bits)] for i in members])
        found = alphas * scale_from_statistic(statistics, scale, bits)  # (members,)
        for i, step in zip(members, found.unbind(), strict=True):
            steps[i] = step
    return steps


def _version(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
