"""What leaves a quantized model: integer codes with their steps, or a plain state_dict."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lowbit_k2.core.grids import ACTIVATION, FLOAT_BITS, HALF_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.quant.inputs import INPUTS, input_quantizers, learned_inputs
from lowbit_k2.quant.projection import expand_steps
from lowbit_k2.quant.quantizer import WeightQuantizer
from lowbit_k2.quant.switching import find_quantizers, latent_weights
from lowbit_k2.quant.walker import NO_ROLE, PlainParameter, effective_weight, plain_parameters, quant_config_of


@dataclass(frozen=True)
class ExportTensor:
    """One parameter of the plain model, or the learned grid of an activation, ready to be stored.

    name, role: as in the report.
    bits: active precision.
    codes: int8, or uint8 where there is a table, true shape; None at 16 and 32 bits.
    step: float32, shape () for "tensor", (rows,) for "channel", (rows, blocks of 64 columns) for "block64"; None at 16
      and 32 bits. rows = dimension 0.
    values: fp16 or float32 tensor at 16 and 32 bits; None otherwise.
    granularity: "tensor", "channel" or "block64".
    table: float32 (2^bits,), what each code stands for; None where codes are multiples of the step.
    input_bits: of the input of the modules that own the tensor; 0 for float inputs.
    aliases: further names of the same tensor in the state_dict, of tied weights.
    """

    name: str
    role: str
    bits: int
    codes: Tensor | None = None
    step: Tensor | None = None
    values: Tensor | None = None
    granularity: str = "tensor"
    table: Tensor | None = None
    input_bits: int = 0
    aliases: tuple[str, ...] = ()

    def dequantize(self) -> Tensor:
        """The float32 weight, bitwise the one that the quantized model computes with."""
        if self.codes is None:
            return self.values.float()
        if self.table is not None:
            return self.table[self.codes.long()]
        return self.codes.float() * expand_steps(self.step, self.codes.shape, self.granularity)


@torch.no_grad()
def export_tensors(model: nn.Module) -> list[ExportTensor]:
    """All parameters of the plain model under the current assignment, in the order of its modules.

    `codes * step`, or `table[codes]`, equals bitwise the weight that the model uses in eval mode under the same
    assignment.

    Raises:
      UserError: an alpha of an active precision is not positive (a training script of your own must hold them above
        zero: look at `quant_statistics`), a weight is not finite, or a weight is not float32.
    """
    config = quant_config_of(model)
    aliases = _aliases(model)
    exported = []
    for parameter in plain_parameters(model):
        name, latent = parameter.name, parameter.latent
        if not torch.isfinite(latent).all():
            raise UserError(f"{name} holds numbers that are not finite: the training diverged")
        if parameter.quantizer is None:
            role = config.role_of(name, latent.dim(), type(parameter.module)) or NO_ROLE
            tensor = ExportTensor(name, role, FLOAT_BITS, values=latent.detach().clone())
        else:
            tensor = _export(parameter, parameter.quantizer)
        exported.append(replace(tensor, input_bits=_input_bits(parameter), aliases=aliases.get(name, ())))
    return exported


def _export(parameter: PlainParameter, quantizer: WeightQuantizer) -> ExportTensor:
    name, latent, bits = parameter.name, parameter.latent.detach(), quantizer.active_bits
    if latent.dtype != torch.float32:
        raise UserError(f"{name} is {latent.dtype}: export takes a float32 model")
    if bits in (HALF_BITS, FLOAT_BITS):
        values = latent.half() if bits == HALF_BITS else latent.clone()
        if not torch.isfinite(values).all():
            raise UserError(f"{name} has numbers beyond the range of fp16: give its role 32 bits")
        return ExportTensor(name, quantizer.role, bits, values=values)
    quantizer.check_export(bits)
    codes, step, table = quantizer.codes(latent, bits), quantizer.step(latent, bits), quantizer.table(bits)
    table = None if table is None else table.clone()
    return ExportTensor(name, quantizer.role, bits, codes, step, granularity=quantizer.scheme.granularity, table=table)


def _input_bits(parameter: PlainParameter) -> int:
    """Bits of the inputs under the present assignment."""
    if parameter.quantizer is not None and parameter.quantizer.active_bits == FLOAT_BITS:
        return 0
    hooks = (hook for module in parameter.hooked() for hook in input_quantizers(module))
    return max((hook.bits for hook in hooks if not hook.is_learned), default=0)


@torch.no_grad()
def export_activations(model: nn.Module) -> list[ExportTensor]:
    """The learned grids of activations under the current assignment: float32 (3,), step, threshold and 1 where codes
    start at 0; `input_bits` is their precision. What runs in float is left out.

    Raises:
      UserError: a grid that no batch has been through, or whose step is not positive.
    """
    exported = []
    for name, grid, hook in learned_inputs(model):
        bits = hook.active_bits
        if bits == FLOAT_BITS:
            continue
        if not grid.is_set:
            raise UserError(f"{name} has no scale as yet: run a batch through the model first")
        numbers = grid.numbers(bits)
        if not (torch.isfinite(numbers).all() and numbers[0] > 0):
            raise UserError(f"{name}: its step at {bits} bits is not positive: lower the learning rate of alphas")
        exported.append(ExportTensor(name, ACTIVATION, FLOAT_BITS, values=numbers, input_bits=bits))
    return exported


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """{name of a tensor: its further names in the state_dict}."""
    names = {id(p.latent): p for p in plain_parameters(model)}
    found: dict[str, tuple[str, ...]] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        parameter = names.get(id(tensor))
        if parameter is not None and (plain := _plain_name(key, parameter)) != parameter.name:
            found[parameter.name] = (*found.get(parameter.name, ()), plain)
    return found


@torch.no_grad()
def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """state_dict of the unquantized architecture, holding the weights in use under the current assignment.

    Parameters and buffers, the statistics of the quantizers left out. No tensor is shared with the model.
    """
    quantizers = find_quantizers(model)
    was_training = [(quantizer, quantizer.training) for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.training = False  # reading weights must not move a running statistic
    try:
        names = {id(p.latent): p for p in plain_parameters(model)}
        own = {id(t) for q in quantizers for t in (*q.parameters(), *q.buffers())}
        plain = {}
        for key, tensor in model.state_dict(keep_vars=True).items():
            parameter = names.get(id(tensor))
            if parameter is not None:
                plain[_plain_name(key, parameter)] = effective_weight(parameter).detach().clone()
            elif id(tensor) not in own and INPUTS not in key.split("."):
                plain[key] = tensor.detach().clone()
        return plain
    finally:
        for quantizer, training in was_training:
            quantizer.training = training


@torch.no_grad()
def rederive_scales(model: nn.Module) -> None:
    """Recompute running-absmax statistics from the present latents, in place; call it after averaging checkpoints.

    absmean and lsq were set once at the start, equal in all checkpoints, and stay; 2std-clipped is never stored.
    """
    for quantizer, latent in latent_weights(model).items():
        quantizer.rederive(latent.detach())


def plain_name(key: str) -> str | None:
    """Name in the plain model of an entry of a quantized model's state_dict; None for what a quantizer holds."""
    parts = key.split(".")
    if INPUTS in parts:
        return None
    if "parametrizations" not in parts:
        return key
    if parts[-1] == "original" and parts[-3] == "parametrizations":
        return ".".join([*parts[:-3], parts[-2]])
    place = parts.index("parametrizations")
    return None if parts[place + 2 : place + 3] == ["0"] else key  # else: another parametrization's own tensors


def _plain_name(key: str, parameter: PlainParameter) -> str:
    """`a.parametrizations.weight.original` -> `a.weight` where our own quantizer stands; other names as they are."""
    parts = key.split(".")
    if parameter.quantizer is not None:
        assert parts[-1] == "original" and parts[-3] == "parametrizations", key
        parts = [*parts[:-3], parts[-2]]
    return ".".join(parts)
