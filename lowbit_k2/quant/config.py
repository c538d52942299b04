"""QuantConfig: which tensors take which precisions, by role, as plain validated data that a checkpoint can store.

A *role* is what a tensor does in the model (a feed-forward matrix, a norm). `rules` turn parameter names into roles,
`schemes` give each role its precisions; a role without a scheme stays float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from lowbit_k2.core.grids import FLOAT_BITS, GRANULARITIES, HALF_BITS, LOW_BITS, PRECISIONS
from lowbit_k2.errors import UserError
from lowbit_k2.quant.fake_quant import ALPHA_GRAD_SCALES, ALPHA_GRADS, WEIGHT_GRADS, GradientRule
from lowbit_k2.quant.scales import STATISTICS

MATRIX_ROLES = (
    "encoder_linear",  # feed-forward matrices
    "attention",  # query, key, value, out and position projections
    "convolution",  # the convolution module: pointwise and depthwise
    "subsampling",
    "embedding",
    "decoder",
    "joiner",
    "output",  # CTC head
)
VECTOR_ROLES = ("norm", "bias")
ROLES = (*MATRIX_ROLES, *VECTOR_ROLES)

# (glob on the parameter's name, role): the first match wins. `*` matches dots, too.
DEFAULT_RULES: tuple[tuple[str, str], ...] = (
    ("*.norm.*", "norm"),
    ("*.norm_*", "norm"),
    ("norm.*", "norm"),
    ("*bias", "bias"),
    ("*.pos_bias_[uv]", "bias"),
    ("*.attention.*", "attention"),
    ("encoder.layers.*.conv.*", "convolution"),
    ("encoder.layers.*", "encoder_linear"),
    ("*subsampling.*", "subsampling"),
    ("*embedding.*", "embedding"),
    ("decoder.*", "decoder"),
    ("joiner.*", "joiner"),
    ("ctc_head.*", "output"),
)


@dataclass(frozen=True)
class TensorScheme:
    """How the tensors of one role are quantized.

    bits: one precision (fixed) or several (switched at run time; the first is the default).
    scale: statistic s of `step = alpha * s`, see scales.py; not used at 16 and 32 bits.
    granularity: how many weights share an s: "tensor", "channel" or "block64" (alpha is always one per tensor).
    """

    bits: tuple[int, ...]
    scale: str = "2std-clipped"
    granularity: str = "tensor"

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", tuple(self.bits))
        unknown = [b for b in self.bits if b not in PRECISIONS]
        if unknown or not self.bits or len(set(self.bits)) != len(self.bits):
            raise UserError(f"bits {self.bits}: give one or more different precisions out of {_spell(PRECISIONS)}")
        _check("scale statistic", self.scale, STATISTICS)
        _check("granularity", self.granularity, GRANULARITIES)
        if self.scale == "absmean" and any(2 < b <= 8 for b in self.bits):
            raise UserError(f"scale absmean is defined at 1 and 2 bits, not at {self.bits}: take lsq or running-absmax")


@dataclass(frozen=True)
class QuantConfig:
    """A full allocation of bits. Make one with `preset`, or write out the schemes by role.

    name: of the preset, or your own; it appears in reports and error lines.
    schemes: role -> TensorScheme; a role not named stays float32.
    rules: (glob on the plain parameter name, role), first match wins; the default fits the models of this project.
    switched_roles: roles that follow `use_precision`; the others keep their one precision.
    layer_prefix: layer i is the module f"{layer_prefix}.{i}".
    alpha_grad: "chain" (d step / d alpha = s) or "authors" (the factor s dropped).
    weight_grad: "identity" (the paper) or "clipped" (zero outside the clipping range, LSQ).
    alpha_grad_scale: "none", or "lsq": alpha's gradient times 1 / sqrt(N * Qp).
    """

    name: str
    schemes: Mapping[str, TensorScheme] = field(default_factory=dict)
    rules: tuple[tuple[str, str], ...] = DEFAULT_RULES
    switched_roles: tuple[str, ...] = ("encoder_linear", "attention")
    layer_prefix: str = "encoder.layers"
    alpha_grad: str = "chain"
    weight_grad: str = "identity"
    alpha_grad_scale: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schemes", dict(self.schemes))
        object.__setattr__(self, "rules", tuple((glob, role) for glob, role in self.rules))
        object.__setattr__(self, "switched_roles", tuple(self.switched_roles))
        _check("alpha_grad", self.alpha_grad, ALPHA_GRADS)
        _check("weight_grad", self.weight_grad, WEIGHT_GRADS)
        _check("alpha_grad_scale", self.alpha_grad_scale, ALPHA_GRAD_SCALES)
        for role in (*self.schemes, *self.switched_roles, *(role for _, role in self.rules)):
            _check("role", role, ROLES)
        for role, scheme in self.schemes.items():
            if role in VECTOR_ROLES and not set(scheme.bits) <= {HALF_BITS, FLOAT_BITS}:
                raise UserError(f"role {role} holds vectors, which take 16 or 32 bits, not {_spell(scheme.bits)}")
            if len(scheme.bits) > 1 and role not in self.switched_roles:
                raise UserError(f"role {role} has several precisions: name it in switched_roles as well")
        if len(self._switched_bits()) > 1 and not self.switched_precisions:
            raise UserError(f"the switched roles {_spell(self.switched_roles)} have no precision in common")

    @classmethod
    def preset(cls, name: str, precisions: Sequence[int] = (2, 1), **overrides: Any) -> QuantConfig:
        """A named allocation; see presets.py for what each holds.

        Args:
          name: "float", "paper", "lossless16" or "all-low".
          precisions: of the switched roles; the first is the default. Ignored by "float".
          overrides: `scale` and `granularity` change the switched roles, `schemes` replaces single roles, every
            other field of QuantConfig is taken as it is.
        Raises:
          UserError: unknown preset, field or precision.
        """
        from lowbit_k2.quant.presets import build_preset  # it needs this class

        return build_preset(name, tuple(precisions), overrides)

    @property
    def switched_precisions(self) -> tuple[int, ...]:
        """Precisions that every switched role has, in the order of the first such role; (32,) where none has any."""
        switched = self._switched_bits()
        if not switched:
            return (FLOAT_BITS,)
        return tuple(b for b in switched[0] if all(b in bits for bits in switched))

    @property
    def gradient_rule(self) -> GradientRule:
        return GradientRule(self.alpha_grad, self.weight_grad, self.alpha_grad_scale)

    def role_of(self, name: str, num_dims: int) -> str | None:
        """Role of a parameter by its plain name; None where no rule matches.

        Vectors are never matrices, whatever the rules say: a 1-D tensor that a rule sends to a matrix role is a bias.
        """
        for glob, role in self.rules:
            if fnmatchcase(name, glob):
                return "bias" if num_dims < 2 and role in MATRIX_ROLES else role
        return None

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
        except ValueError as error:
            raise UserError(f"the quantization config is not JSON: {error}") from None
        return cls.from_dict(value)

    def _switched_bits(self) -> list[tuple[int, ...]]:
        return [self.schemes[role].bits for role in self.switched_roles if role in self.schemes]


def _check(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{what} {value!r} is unknown: choose one of {_spell(allowed)}")


def _spell(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)


def low_bits(bits: Sequence[int]) -> tuple[int, ...]:
    """Those of `bits` that have codes, and with them an alpha."""
    return tuple(b for b in bits if b in LOW_BITS)
