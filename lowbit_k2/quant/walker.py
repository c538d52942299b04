"""quantize_model: walk a model, put a quantizer on every tensor that the config names, account for every parameter."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.quant.config import SAME, QuantConfig, TensorScheme
from lowbit_k2.quant.inputs import (
    INPUTS,
    add_input_quantizer,
    add_product_quantizers,
    keep_forward,
    learned_inputs,
    takes_input_quantizer,
)
from lowbit_k2.quant.parameters import quantizer_parameters
from lowbit_k2.quant.quantizer import WeightQuantizer, quantizer_class
from lowbit_k2.quant.report import ActivationRow, QuantReport, ReportRow
from lowbit_k2.quant.rnn import reads_past_quantization
from lowbit_k2.quant.switching import find_quantizers

logger = logging.getLogger(__name__)

NO_ROLE = "other"
NO_RULE, ASKED_FOR, EMPTY = "no rule names it", "32 bits asked for", "empty"  # reasons of the report


@dataclass
class PlainParameter:
    """A parameter as the unquantized model names it.

    module: the one that it belongs to in the unquantized model.
    owners: the modules and attributes that hold it; several where modules share one tensor.
    quantizer: None for a tensor without one; `latent` is the float parameter itself.
    """

    name: str
    latent: nn.Parameter
    module: nn.Module
    owners: list[tuple[nn.Module, str]]
    quantizer: WeightQuantizer | None = None

    def hooked(self) -> list[nn.Module]:
        """The modules that multiply their input by this tensor, and let it be quantized."""
        return [m for m, attribute in self.owners if attribute == "weight" and takes_input_quantizer(m)]


def quantize_model(model: nn.Module, config: QuantConfig, strict: bool = False) -> QuantReport:
    """Put quantizers on the weights of `model`, in place, and report on every parameter.

    The latent weights stay the same Parameter objects and move to
    `<module>.parametrizations.<name>.original`; reading `<module>.<name>` gives the quantized weight. Tensors that
    modules share keep sharing, with one quantizer. What is frozen (`requires_grad` false) keeps its scales as they
    are at first. Run it before making an optimizer (it adds the alphas) and before loading a checkpoint of a quantized
    model.

    Matrices that stay float without the config saying so (no rule, no scheme, a kind of module that cannot) are named
    in a warning, or refused where `strict`.

    Raises:
      UserError: the model is quantized already, is not in float32 or float64, or hides a weight that the config
        wants quantized (torch's LSTM, GRU and RNN read their weights past the attribute: `replace_rnns` first).
    """
    if find_quantizers(model):
        raise UserError("the model is quantized already: quantize a freshly made one")
    parameters = plain_parameters(model)
    rows = [_describe(parameter, config) for parameter in parameters]
    overlooked = _overlooked(model, rows, config)
    if overlooked and strict:
        raise UserError(overlooked)
    chosen = [(parameter, row) for parameter, row in zip(parameters, rows, strict=True) if row.reason is None]
    for parameter, _ in chosen:
        _check(parameter)
    for parameter, row in chosen:
        _register(parameter, config.schemes[row.role], row, config)
    add_product_quantizers(model, config)
    if any(row.input_bits for row in rows):
        keep_forward(model)
    if overlooked:
        logger.warning(overlooked)
    object.__setattr__(model, "_quant_config", config)  # for export: roles of the tensors that stay float
    num_alphas = sum(alpha.numel() for alpha in quantizer_parameters(model))
    return QuantReport(config.name, config.switched_precisions, tuple(rows), num_alphas, _activations(model))


def quant_config_of(model: nn.Module) -> QuantConfig:
    """The config that `quantize_model` was given; an empty one, all float32, for a model never quantized."""
    return getattr(model, "_quant_config", None) or QuantConfig("float")


def plain_parameters(model: nn.Module) -> list[PlainParameter]:
    """All parameters by their plain names, each tensor once; alphas are no parameters of the plain model.

    Works before and after quantization, with the same names.
    """
    found: dict[int, PlainParameter] = {}
    for name, module, owner, attribute, tensor, quantizer in _walk(model):
        known = found.setdefault(id(tensor), PlainParameter(name, tensor, module, [], quantizer))
        known.owners.append((owner, attribute))
    return list(found.values())


def effective_weight(parameter: PlainParameter) -> Tensor:
    """What the model computes with: quantized at the active precision where there is a quantizer."""
    owner, attribute = parameter.owners[0]
    return getattr(owner, attribute)


def _walk(
    model: nn.Module,
) -> Iterator[tuple[str, nn.Module, nn.Module, str, nn.Parameter, WeightQuantizer | None]]:
    """Name, module, what holds the tensor and under which attribute, the tensor, its quantizer."""
    for module_name, module in model.named_modules(remove_duplicate=True):
        if {"parametrizations", INPUTS} & set(module_name.split(".")):
            continue  # the first are reached through their owner below, the others are no part of the plain model
        prefix = f"{module_name}." if module_name else ""
        for attribute, tensor in module.named_parameters(recurse=False):
            yield prefix + attribute, module, module, attribute, tensor, None
        for attribute, chain in getattr(module, "parametrizations", {}).items():
            if isinstance(chain[0], WeightQuantizer):
                yield prefix + attribute, module, module, attribute, chain.original, chain[0]
            else:  # somebody else's parametrization, as weight_norm: its tensors under their own names
                for inner, tensor in chain.named_parameters():
                    yield f"{prefix}parametrizations.{attribute}.{inner}", module, chain, inner, tensor, None


def _describe(parameter: PlainParameter, config: QuantConfig) -> ReportRow:
    """The report's row; its `reason` decides whether a quantizer is registered."""
    latent = parameter.latent
    role = config.role_of(parameter.name, latent.dim(), type(parameter.module))
    scheme = config.schemes.get(role or "")
    reason = None
    if role is None:
        reason = NO_RULE
    elif scheme is None:
        past = reads_past_quantization(parameter.module) and config.schemes
        reason = _past_the_attribute(parameter.module) if past else f"{config.name} leaves it float"
    elif scheme.bits == (FLOAT_BITS,):
        reason = ASKED_FOR
    elif latent.numel() == 0:
        reason = EMPTY
    else:
        reason = _other_parametrization(parameter)
    shape = tuple(latent.shape)
    if reason is not None:
        return ReportRow(parameter.name, role or NO_ROLE, shape, (FLOAT_BITS,), reason=reason)
    return ReportRow(
        parameter.name,
        role,
        shape,
        scheme.bits,
        role in config.switched_roles,
        scheme.scale if scheme.quantizer == "linear" else scheme.quantizer,
        scheme.granularity,
        input_bits=scheme.input_bits if parameter.hooked() else 0,
        is_index=quantizer_class(scheme.quantizer).is_index,
    )


def _other_parametrization(parameter: PlainParameter) -> str | None:
    """Why a tensor that makes up a weight with others, or in another way, stays float; None for plain weights.

    weight_norm comes as a parametrization in new torch and as a hook in old, or where asked for by its old name.
    """
    for owner, attribute in parameter.owners:
        if isinstance(owner, parametrize.ParametrizationList):
            kinds = {type(part).__name__.strip("_") for part in owner}
            return "under weight_norm" if kinds == {"WeightNorm"} else "under another parametrization"
        for hook in owner._forward_pre_hooks.values():
            kind = type(hook).__name__
            if kind in ("WeightNorm", "SpectralNorm") and attribute.rpartition("_")[0] == getattr(hook, "name", ""):
                return "under weight_norm" if kind == "WeightNorm" else "under another parametrization"
    return None


def _past_the_attribute(module: nn.Module) -> str:
    name = type(module).__name__.removeprefix("Parametrized")
    return f"{name} reads its weights past quantization, call replace_rnns(model) first"


def _overlooked(model: nn.Module, rows: Sequence[ReportRow], config: QuantConfig) -> str:
    """One line on matrices that stay float, or whose inputs do, though nothing in the config says so; "" for none."""
    unused = tuple(f"{module}." for module in getattr(model, "training_only", ()))
    if not config.schemes:
        return ""
    matrices = [row for row in rows if len(row.shape) > 1 and not row.name.startswith(unused)]
    silent = set(config.float_roles) - set(config.schemes)
    by_accident = [row for row in matrices if row.reason not in (None, ASKED_FOR, EMPTY) and row.role not in silent]
    parts = []
    if by_accident:
        share = sum(row.num_weights for row in by_accident) / max(sum(row.num_weights for row in rows), 1)
        reasons = ", ".join(dict.fromkeys(row.reason for row in by_accident))
        parts.append(
            f"{len(by_accident)} matrices stay float32, {share:.1%} of all weights: {_first(by_accident)} ({reasons})"
        )
    inputs = [row for row in matrices if row.reason is None and _wants_input(row, config) and not row.input_bits]
    if inputs:
        parts.append(f"inputs stay float where no Linear or convolution takes them: {_first(inputs)}")
    if not parts:
        return ""
    return f"{config.name}: {'; '.join(parts)}. Give them rules and schemes in the config, or name float_roles"


def _wants_input(row: ReportRow, config: QuantConfig) -> bool:
    return row.role in config.schemes and config.schemes[row.role].input_bits != 0


def _activations(model: nn.Module) -> tuple[ActivationRow, ...]:
    """What has a learned grid."""
    found = []
    for name, grid, hook in learned_inputs(model):
        role = hook.quantizer.role if isinstance(hook.quantizer, WeightQuantizer) else "product"
        switched = hook.bits == SAME and hook.quantizer.switched
        found.append(ActivationRow(name, role, tuple(sorted(map(int, grid.alphas), reverse=True)), switched))
    return tuple(found)


def _first(rows: Sequence[ReportRow], count: int = 3) -> str:
    return ", ".join([*(row.name for row in rows[:count]), *(["..."] if len(rows) > count else [])])


def _check(parameter: PlainParameter) -> None:
    """Raise UserError for a tensor that cannot have a quantizer."""
    latent = parameter.latent
    if latent.dtype not in (torch.float32, torch.float64):
        raise UserError(f"{parameter.name} is {latent.dtype}: latent weights must be float32")
    for owner, attribute in parameter.owners:
        if reads_past_quantization(owner):
            raise UserError(
                f"{parameter.name}: {_past_the_attribute(owner)}, or give it a rule to a role without scheme, before "
                "the one that it has now"
            )
        if parametrize.is_parametrized(owner, attribute):
            raise UserError(f"{parameter.name} has a parametrization already: remove it or leave its role float")


def _register(parameter: PlainParameter, scheme: TensorScheme, row: ReportRow, config: QuantConfig) -> None:
    latent = parameter.latent
    quantizer = quantizer_class(scheme.quantizer)(
        latent.detach(),
        scheme,
        parameter.name,
        row.role,
        row.switched,
        config.gradient_rule,
        frozen=not latent.requires_grad,
    )
    if config.alpha_init == "l2":
        quantizer.fit(latent.detach())
    for owner, attribute in parameter.owners:
        # unsafe=True: skip torch's trial run, the shape and type do not change
        parametrize.register_parametrization(owner, attribute, quantizer, unsafe=True)
    if row.input_bits:
        for module in parameter.hooked():
            add_input_quantizer(module, parameter.name, scheme, quantizer, config.gradient_rule, quantizer.frozen)
