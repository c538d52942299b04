"""quantize_model: walk a model, put a quantizer on every tensor that the config names, account for every parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.quant.config import QuantConfig, TensorScheme
from lowbit_k2.quant.quantizer import WeightQuantizer
from lowbit_k2.quant.report import QuantReport, ReportRow
from lowbit_k2.quant.switching import find_quantizers

NO_ROLE = "other"


@dataclass
class PlainParameter:
    """A parameter as the unquantized model names it.

    owners: the modules and attributes that hold it; several where modules share one tensor.
    quantizer: None for a tensor without one; `latent` is the float parameter itself.
    """

    name: str
    latent: nn.Parameter
    owners: list[tuple[nn.Module, str]]
    quantizer: WeightQuantizer | None = None


def quantize_model(model: nn.Module, config: QuantConfig) -> QuantReport:
    """Put quantizers on the weights of `model`, in place, and report on every parameter.

    The latent weights stay the same Parameter objects and move to
    `<module>.parametrizations.<name>.original`; reading `<module>.<name>` gives the quantized weight. Tensors that
    modules share keep sharing, with one quantizer. Run it before making an optimizer (it adds the alphas) and before
    loading a checkpoint of a quantized model.

    Raises:
      UserError: the model is quantized already, is not in float32 or float64, or hides a weight that the config
        wants quantized (torch's LSTM, GRU and RNN read their weights past the attribute).
    """
    if find_quantizers(model):
        raise UserError("the model is quantized already: quantize a freshly made one")
    rows = []
    for parameter in plain_parameters(model):
        row = _describe(parameter, config)
        if row.reason is None:
            _register(parameter, config.schemes[row.role], row, config)
        rows.append(row)
    object.__setattr__(model, "_quant_config", config)  # for export: roles of the tensors that stay float
    num_alphas = sum(len(quantizer.alphas) for quantizer in find_quantizers(model))
    return QuantReport(config.name, config.switched_precisions, tuple(rows), num_alphas)


def quant_config_of(model: nn.Module) -> QuantConfig:
    """The config that `quantize_model` was given; an empty one, all float32, for a model never quantized."""
    return getattr(model, "_quant_config", None) or QuantConfig("float")


def plain_parameters(model: nn.Module) -> list[PlainParameter]:
    """All parameters by their plain names, each tensor once; alphas are no parameters of the plain model.

    Works before and after quantization, with the same names.
    """
    found: dict[int, PlainParameter] = {}
    for name, owner, attribute, tensor, quantizer in _walk(model):
        known = found.setdefault(id(tensor), PlainParameter(name, tensor, [], quantizer))
        known.owners.append((owner, attribute))
    return list(found.values())


def effective_weight(parameter: PlainParameter) -> Tensor:
    """What the model computes with: quantized at the active precision where there is a quantizer."""
    owner, attribute = parameter.owners[0]
    return getattr(owner, attribute)


def _walk(
    model: nn.Module,
) -> Iterator[tuple[str, nn.Module, str, nn.Parameter, WeightQuantizer | None]]:
    for module_name, module in model.named_modules(remove_duplicate=True):
        if "parametrizations" in module_name.split("."):
            continue  # reached through their owner below
        prefix = f"{module_name}." if module_name else ""
        for attribute, tensor in module.named_parameters(recurse=False):
            yield prefix + attribute, module, attribute, tensor, None
        for attribute, chain in getattr(module, "parametrizations", {}).items():
            if isinstance(chain[0], WeightQuantizer):
                yield prefix + attribute, module, attribute, chain.original, chain[0]
            else:  # somebody else's parametrization, as weight_norm: its tensors under their own names
                for inner, tensor in chain.named_parameters():
                    yield f"{prefix}parametrizations.{attribute}.{inner}", chain, inner, tensor, None


def _describe(parameter: PlainParameter, config: QuantConfig) -> ReportRow:
    """The report's row; its `reason` decides whether a quantizer is registered."""
    latent = parameter.latent
    role = config.role_of(parameter.name, latent.dim())
    scheme = config.schemes.get(role or "")
    reason = None
    if role is None:
        reason = "no rule names it"
    elif scheme is None:
        reason = f"{config.name} leaves it float"
    elif scheme.bits == (FLOAT_BITS,):
        reason = "32 bits asked for"
    elif any(isinstance(owner, parametrize.ParametrizationList) for owner, _ in parameter.owners):
        reason = "under another parametrization"
    elif latent.numel() == 0:
        reason = "empty"
    if reason is not None:
        return ReportRow(parameter.name, role or NO_ROLE, tuple(latent.shape), (FLOAT_BITS,), reason=reason)
    switched = role in config.switched_roles
    return ReportRow(parameter.name, role, tuple(latent.shape), scheme.bits, switched, scheme.scale, scheme.granularity)


def _register(parameter: PlainParameter, scheme: TensorScheme, row: ReportRow, config: QuantConfig) -> None:
    latent = parameter.latent
    if latent.dtype not in (torch.float32, torch.float64):
        raise UserError(f"{parameter.name} is {latent.dtype}: latent weights must be float32")
    for owner, attribute in parameter.owners:
        if isinstance(owner, nn.RNNBase):
            raise UserError(
                f"{parameter.name}: {type(owner).__name__} reads its weights past quantization; leave its role float"
            )
        if parametrize.is_parametrized(owner, attribute):
            raise UserError(f"{parameter.name} has a parametrization already: remove it or leave its role float")
    quantizer = WeightQuantizer(latent.detach(), scheme, parameter.name, row.role, row.switched, config.gradient_rule)
    for owner, attribute in parameter.owners:
        # unsafe=True: skip torch's trial run, the shape and type do not change
        parametrize.register_parametrization(owner, attribute, quantizer, unsafe=True)
