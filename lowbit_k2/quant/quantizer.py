"""WeightQuantizer: the parametrization that stands between a latent weight and everyone who reads it.

`torch.nn.utils.parametrize` calls it whenever `module.weight` is read, so a weight cannot escape quantization by being
passed to a functional. It reads which precision is active from its own attribute; `use_precision` (switching.py) sets
that, and lends it a cache for the length of a pass. What differs between kinds of quantizers stands in subclasses,
known by name: linear.py, codebook.py, and what `register_quantizer` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lowbit_k2.core.grids import FLOAT_BITS, GRANULARITIES, HALF_BITS, LOW_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.quant.fake_quant import DEFAULT_RULE, GradientRule, round_to_half
from lowbit_k2.quant.projection import expand_steps
from lowbit_k2.quant.relaxation import relax
from lowbit_k2.quant.scales import STATISTICS

if TYPE_CHECKING:
    from lowbit_k2.quant.config import TensorScheme

QUANTIZERS: dict[str, type[WeightQuantizer]] = {}


def register_quantizer(name: str, cls: type[WeightQuantizer]) -> None:
    """Make a class known as `TensorScheme(quantizer=name)`, in every process that reads such a config.

    Raises:
      UserError: the name is taken by another class, or the class is no WeightQuantizer.
    """
    if not (isinstance(cls, type) and issubclass(cls, WeightQuantizer)):
        raise UserError(f"quantizer {name!r}: {cls!r} is no subclass of WeightQuantizer")
    if QUANTIZERS.get(name, cls) is not cls:
        raise UserError(f"quantizer {name!r} is {QUANTIZERS[name].__name__} already: choose another name")
    QUANTIZERS[name] = cls


def quantizer_class(name: str) -> type[WeightQuantizer]:
    """The class of a name.

    Raises:
      UserError: nobody has registered it.
    """
    if name not in QUANTIZERS:
        known = ", ".join(QUANTIZERS)
        raise UserError(f"quantizer {name!r} is unknown: choose one of {known}, or register_quantizer first")
    return QUANTIZERS[name]


class WeightQuantizer(nn.Module):
    """Quantizes one weight tensor at the active precision. Subclasses write the methods under "the interface".

    Of a class, `scales` are the names that `TensorScheme.scale` may have, the first one by default, and `granularities`
    those that it knows.

    Attributes:
      name, role: of the parameter, `encoder.layers.0.ff1.w1.weight`, `encoder_linear`.
      bits: precisions of the tensor; the first is active until `use_precision` says otherwise.
      switched: whether the tensor follows `use_precision`.
      frozen: the latent weight is not trained, hence nothing here is.
      float_in_training: in train mode the model has the latent weight at 1 to 8 bits, too: somebody else brings it to
        its grid (`train/drawn.py`).
    """

    scales: ClassVar[Collection[str]] = STATISTICS
    granularities: ClassVar[Sequence[str]] = GRANULARITIES
    is_index: ClassVar[bool] = False  # codes are places in a table, uint8, and not multiples of a step, int8
    zero_code: ClassVar[int | None] = 0  # whose share `quant_statistics` reports

    def __init__(
        self,
        weight: Tensor,
        scheme: TensorScheme,
        name: str = "weight",
        role: str = "linear",
        switched: bool = True,
        rule: GradientRule = DEFAULT_RULE,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.role, self.switched, self.scheme, self.rule = name, role, switched, scheme, rule
        self.frozen = frozen
        self.bits = scheme.bits
        self.active_bits = scheme.bits[0]
        self.pass_cache: PassCache | None = None
        self.relaxation, self.hardness = "none", 1.0  # see relaxation.py
        self.float_in_training = False
        self.previous_codes: dict[int, Tensor] = {}  # of the last `quant_statistics`

    # The interface. `bits` is one of `self.bits` below 16.

    @classmethod
    def check_scheme(cls, scheme: TensorScheme) -> None:
        """Raise UserError for what the class cannot do."""

    def quantize(self, weight: Tensor, bits: int) -> Tensor:
        """Latent weight -> weight in use, same shape and type, with the gradients that training needs."""
        raise NotImplementedError

    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """Integer codes, shape of `weight`, no gradient: `quantize` gives bitwise codes * step, or table[codes]."""
        raise NotImplementedError

    def step(self, weight: Tensor, bits: int) -> Tensor:
        """Step of each group, no gradient; 1 where codes are places in a table."""
        raise NotImplementedError

    def table(self, bits: int) -> Tensor | None:
        """What each code stands for, where `is_index`."""
        return None

    def learned(self, bits: int) -> list[nn.Parameter]:
        """What is learned of a precision besides the weight; gets no weight decay."""
        return []

    def state(self, bits: int) -> list[Tensor]:
        """All that the value depends on besides the weight: what is learned, and statistics."""
        return list(self.learned(bits))

    def fit(self, weight: Tensor) -> None:
        """Start what is learned at the least squared error for these weights; called once, by `alpha_init="l2"`."""

    def check_export(self, bits: int) -> None:
        """Raise UserError where training has left something that cannot be exported."""

    def rederive(self, weight: Tensor) -> None:
        """Recompute a statistic that follows the weights, after checkpoints have been averaged."""

    @classmethod
    def quantize_all(
        cls, quantizers: Sequence[WeightQuantizer], weights: Sequence[Tensor], on_backward: Callable[[], object]
    ) -> list[Tensor]:
        """All tensors of this class at their active precisions, 16 included; a class may make one pass of it.

        Args:
          on_backward: to be called when a backward goes through one of the values.
        """
        values = []
        for quantizer, weight in zip(quantizers, weights, strict=True):
            bits = quantizer.active_bits
            value = round_to_half(weight) if bits == HALF_BITS else quantizer.quantize(weight, bits)
            if value.requires_grad:
                value.register_hook(lambda _: on_backward() and None)
            values.append(value)
        return values

    # What all share.

    def forward(self, weight: Tensor) -> Tensor:
        """Latent weight -> the weight used by the model; computed once per pass inside `use_precision`."""
        if self.active_bits == FLOAT_BITS or self.is_left_float:
            return weight
        if self.pass_cache is not None:
            return self.pass_cache.get(self, weight)
        return quantize_together([self], [weight])[0]

    @property
    def is_left_float(self) -> bool:
        """Whether the model has the latent weight, although a low precision is active."""
        return self.float_in_training and self.training and self.active_bits in LOW_BITS

    def extra_repr(self) -> str:
        return f"{self.name}, bits={self.bits}, active={self.active_bits}"

    def stamp(self, weight: Tensor) -> tuple:
        """Everything that a cached weight depends on; optimizers and load_state_dict raise the version counters."""
        bits = self.active_bits
        modes = (bits, weight.requires_grad, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), self.training)
        if bits == HALF_BITS:
            return modes, _version(weight)
        return modes, _version(weight), *(_version(tensor) for tensor in self.state(bits))

    def activate(self, bits: int, cache: PassCache | None) -> None:
        """Set precision and cache; past nn.Module's checks on attributes, which take longer than all else here."""
        self.__dict__.update(active_bits=bits, pass_cache=cache)


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
        latents = {
            q: owner.original for q, owner in self.owners.items() if q.active_bits != FLOAT_BITS and not q.is_left_float
        }
        quantized = quantize_together(list(latents), list(latents.values()), self.values.clear)
        self.values.update(
            {q: (q.stamp(latent), value) for (q, latent), value in zip(latents.items(), quantized, strict=True)}
        )

    def __deepcopy__(self, memo: dict) -> None:
        """It holds tensors with a graph, which cannot be copied: the copy of a model has no cache."""
        return None


def quantize_together(
    quantizers: Sequence[WeightQuantizer], weights: Sequence[Tensor], on_backward: Callable[[], object] = lambda: None
) -> list[Tensor]:
    """Each weight at the active precision (not 32) of its quantizer; each class makes its own in one call."""
    members: dict[type[WeightQuantizer], list[int]] = {}
    for i, quantizer in enumerate(quantizers):
        members.setdefault(type(quantizer), []).append(i)
    values: list[Tensor | None] = [None] * len(quantizers)
    with torch.autocast(weights[0].device.type, enabled=False):  # whatever a statistic is made of
        for cls, places in members.items():
            made = cls.quantize_all([quantizers[i] for i in places], [weights[i] for i in places], on_backward)
            for i, value in zip(places, made, strict=True):
                values[i] = _relaxed(quantizers[i], weights[i], value)
    return values


def _relaxed(quantizer: WeightQuantizer, weight: Tensor, value: Tensor) -> Tensor:
    """What the model sees in training while weights are still on their way to the grid."""
    bits, hardness = quantizer.active_bits, quantizer.hardness
    if quantizer.relaxation == "none" or hardness == 1.0 or bits == HALF_BITS or not quantizer.training:
        return value
    if quantizer.is_index and quantizer.relaxation != "blend":
        raise UserError(f"{quantizer.name}: {quantizer.relaxation} needs an even grid: take blend")
    step = None if quantizer.is_index else quantizer.step(weight, bits)
    if step is not None:
        step = expand_steps(step, weight.shape, quantizer.scheme.granularity)
    return relax(quantizer.relaxation, hardness, weight, value, step, bits)


def _version(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
