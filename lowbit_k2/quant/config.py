"""QuantConfig: which tensors take which precisions, by role, as plain validated data that a checkpoint can store.

A *role* is a label for what a tensor does in the model (a feed-forward matrix, a norm). `rules` turn parameters into
roles (see rules.py), `schemes` give each role its quantizer and precisions; a role without a scheme stays float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lowbit_k2.core.grids import FLOAT_BITS, GRANULARITIES, HALF_BITS, LOW_BITS, PRECISIONS
from lowbit_k2.errors import UserError
from lowbit_k2.quant.fake_quant import ALPHA_GRAD_SCALES, ALPHA_GRADS, WEIGHT_GRADS, GradientRule
from lowbit_k2.quant.least_squares import ALPHA_INITS
from lowbit_k2.quant.rules import DEFAULT_RULES, checked_rules, match_role

if TYPE_CHECKING:
    from lowbit_k2.quant.quantizer import WeightQuantizer

BIAS = "bias"  # where vectors go

# Roles of this project's models that the paper leaves float. Without a scheme they stay so, and nobody is warned.
FLOAT_ROLES = ("subsampling", "embedding", "decoder", "joiner", "output", "norm", "bias", "training_only")
SWITCHED_ROLES = ("encoder_linear", "attention", "feed_forward", "lstm", "linear")
SAME = "same"  # inputs take the precision that the weight has at the time
INPUT_BITS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 16, SAME)
DYNAMIC, ELASTIC = "dynamic", "elastic"  # quantizers of inputs


@dataclass(frozen=True)
class TensorScheme:
    """How the tensors of one role are quantized.

    bits: one precision (fixed) or several (switched at run time; the first is the default).
    scale: of "linear", the statistic s of `step = alpha * s`, see scales.py; of "gq", that of its tables, see
      general.py; "" takes the quantizer's first. Not used at 16 and 32 bits.
    granularity: how many weights share an s: "tensor", "channel" or "block64" (alpha is always one per tensor); ""
      takes the quantizer's first.
    quantizer: name of its class: "linear", "codebook", "gq", or one of your own (`register_quantizer`).
    input_bits: 2 to 8 or 16 quantizes what goes into the Linear or convolution that owns the tensor, see inputs.py;
      0 leaves it float; "same" has it follow `bits`. Of a MatrixProduct, which owns none, those of both operands.
    input_quantizer: "dynamic", on a grid that follows each input, or "elastic", on one that is learned: 1 to 8 bits.
    """

    bits: tuple[int, ...]
    scale: str = ""
    granularity: str = ""
    quantizer: str = "linear"
    input_bits: int | str = 0
    input_quantizer: str = DYNAMIC

    def __post_init__(self) -> None:
        if isinstance(self.bits, (str, int)):
            raise UserError(f"bits {self.bits!r}: give a tuple of precisions, as (2, 1)")
        object.__setattr__(self, "bits", tuple(self.bits))
        unknown = [b for b in self.bits if b not in PRECISIONS]
        if unknown or not self.bits or len(set(self.bits)) != len(self.bits):
            raise UserError(f"bits {self.bits}: give one or more different precisions out of {_spell(PRECISIONS)}")
        if self.input_bits not in INPUT_BITS:
            raise UserError(f"input_bits {self.input_bits!r}: choose one of {_spell(INPUT_BITS)}")
        if self.input_bits and self.bits == (FLOAT_BITS,):
            raise UserError("input_bits goes with quantized weights, it cannot stand beside bits (32,)")
        _check("input_quantizer", self.input_quantizer, (DYNAMIC, ELASTIC))
        refused = (1, SAME) if self.input_quantizer == DYNAMIC else (0, HALF_BITS)
        if self.input_bits in refused:
            raise UserError(
                f"inputs of {self.input_bits} bits are nothing for the input_quantizer {self.input_quantizer}"
            )
        cls = _quantizer_class(self.quantizer)
        object.__setattr__(self, "scale", self.scale or next(iter(cls.scales)))
        object.__setattr__(self, "granularity", self.granularity or next(iter(cls.granularities)))
        _check("granularity", self.granularity, GRANULARITIES)
        _check("scale statistic", self.scale, cls.scales)
        _check(f"granularity of {self.quantizer}", self.granularity, cls.granularities)
        cls.check_scheme(self)
        if self.scale == "absmean" and any(2 < b <= 8 for b in self.bits):
            raise UserError(f"scale absmean is defined at 1 and 2 bits, not at {self.bits}: take lsq or running-absmax")


@dataclass(frozen=True)
class QuantConfig:
    """A full allocation of bits. Make one with `preset`, or write out the schemes by role.

    name: of the preset, or your own; it appears in reports and error lines.
    schemes: role -> TensorScheme; a role not named stays float32.
    rules: (pattern, role), first match wins; the default knows the names of this project's models, and then goes by
      the kind of module: `linear`, `convolution`, `embedding`, `attention`, `norm`, `recurrent`.
    switched_roles: roles that follow `use_precision`; the others keep their one precision.
    float_roles: roles that stay float on purpose where they have no scheme; `quantize_model` warns of all others.
    layer_prefix: layer i is the module f"{layer_prefix}.{i}".
    alpha_grad: "chain" (d step / d alpha = s) or "authors" (1 / Qp in the place of s).
    weight_grad: "identity" (the paper) or "clipped" (zero outside the clipping range, LSQ).
    alpha_grad_scale: "none", or "lsq": alpha's gradient times 1 / sqrt(N * Qp).
    alpha_init: "l2", where the grid is nearest to the weights (least_squares.py), or "one", as the authors have it.
    """

    name: str
    schemes: Mapping[str, TensorScheme] = field(default_factory=dict)
    rules: tuple[tuple[str, str], ...] = DEFAULT_RULES
    switched_roles: tuple[str, ...] = SWITCHED_ROLES
    float_roles: tuple[str, ...] = FLOAT_ROLES
    layer_prefix: str = "encoder.layers"
    alpha_grad: str = "chain"
    weight_grad: str = "identity"
    alpha_grad_scale: str = "none"
    alpha_init: str = "l2"

    def __post_init__(self) -> None:
        if not isinstance(self.schemes, Mapping):
            raise UserError(f"schemes map roles to TensorScheme, they are not {self.schemes!r}")
        object.__setattr__(self, "schemes", dict(self.schemes))
        object.__setattr__(self, "rules", checked_rules(self.rules))
        for name in ("switched_roles", "float_roles"):
            if isinstance(getattr(self, name), str):
                raise UserError(f"{name} {getattr(self, name)!r}: give a tuple of roles")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check("alpha_grad", self.alpha_grad, ALPHA_GRADS)
        _check("weight_grad", self.weight_grad, WEIGHT_GRADS)
        _check("alpha_grad_scale", self.alpha_grad_scale, ALPHA_GRAD_SCALES)
        _check("alpha_init", self.alpha_init, ALPHA_INITS)
        for role, scheme in self.schemes.items():
            if not isinstance(role, str) or not isinstance(scheme, TensorScheme):
                raise UserError(f"the scheme of role {role!r} is no TensorScheme but {scheme!r}")
            if role == BIAS and low_bits(scheme.bits):
                raise UserError(f"role bias holds vectors, which take 16 or 32 bits, not {_spell(scheme.bits)}")
            if len(scheme.bits) > 1 and role not in self.switched_roles:
                raise UserError(f"role {role} has several precisions: name it in switched_roles as well")
        if len(self._switched_bits()) > 1 and not self.switched_precisions:
            raise UserError(f"the switched roles {_spell(self.switched_roles)} have no precision in common")

    @classmethod
    def preset(cls, name: str, precisions: Sequence[int] = (2, 1), **overrides: Any) -> QuantConfig:
        """A named allocation; see presets.py for what each holds.

        Args:
          name: as presets.py has them.
          precisions: of the switched roles; the first is the default. Ignored by "float".
          overrides: `scale`, `granularity`, `input_bits` and `input_quantizer` change the switched roles, `quantizer`
            all that have 1 to 8 bits, `schemes` replaces single roles, every other field of QuantConfig is taken as
            it is.
        Raises:
          UserError: unknown preset, field or precision.
        """
        from lowbit_k2.quant.presets import build_preset  # it needs this class

        return build_preset(name, tuple(precisions), overrides)

    @property
    def switched_precisions(self) -> tuple[int, ...]:
        """Precisions for the whole model, in order: those of the switched roles that each of them has, or that has one
        precision only, which it keeps; (32,) where nothing is switched."""
        switched = self._switched_bits()
        if not switched:
            return (FLOAT_BITS,)
        every = dict.fromkeys(b for bits in switched for b in bits)
        return tuple(b for b in every if all(b in bits or len(bits) == 1 for bits in switched))

    def product_scheme(self, name: str, owner: type) -> tuple[str, TensorScheme] | None:
        """Role and scheme of a product of activations, by its module's name and class; None: operands stay float."""
        role = match_role(self.rules, name, owner)
        scheme = self.schemes.get(role or "")
        return (role, scheme) if scheme is not None and scheme.input_bits else None

    @property
    def gradient_rule(self) -> GradientRule:
        return GradientRule(self.alpha_grad, self.weight_grad, self.alpha_grad_scale)

    def role_of(self, name: str, num_dims: int, owner: type | None = None) -> str | None:
        """Role of a parameter by its plain name and the class of the module that owns it; None where no rule matches.

        Vectors take no low precisions: one that a rule sends to a role with some below 16 is a bias.
        """
        role = match_role(self.rules, name, owner)
        if num_dims < 2 and role in self.schemes and low_bits(self.schemes[role].bits):
            return BIAS
        return role

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        value = {f.name: getattr(self, f.name) for f in fields(self)}
        value["schemes"] = {role: asdict(scheme) for role, scheme in self.schemes.items()}
        return json.loads(json.dumps(value))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> QuantConfig:
        """Inverse of `to_dict`.

        Raises:
          UserError: a field is missing, unknown or has a wrong value.
        """
        try:
            schemes = {role: TensorScheme(**scheme) for role, scheme in value.get("schemes", {}).items()}
            return cls(**{**value, "schemes": schemes})
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"not a quantization config of this version: {error}") from None

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> QuantConfig:
        """Inverse of `to_json`; raises UserError as `from_dict` does."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the quantization config is not JSON: {error}") from None
        return cls.from_dict(value)

    def _switched_bits(self) -> list[tuple[int, ...]]:
        return [self.schemes[role].bits for role in self.switched_roles if role in self.schemes]


def _check(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{what} {value!r} is unknown: choose one of {_spell(allowed)}")


def _quantizer_class(name: str) -> type[WeightQuantizer]:
    from lowbit_k2.quant.quantizer import quantizer_class  # the classes need this module

    return quantizer_class(name)


def _spell(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)


def low_bits(bits: Sequence[int]) -> tuple[int, ...]:
    """Those of `bits` that have codes, and with them an alpha."""
    return tuple(b for b in bits if b in LOW_BITS)
