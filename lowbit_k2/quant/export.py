"""What leaves a quantized model: integer codes with their steps, or a plain state_dict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit_k2.core.grids import FLOAT_BITS, HALF_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.quant.projection import spread
from lowbit_k2.quant.quantizer import WeightQuantizer
from lowbit_k2.quant.switching import latent_weights
from lowbit_k2.quant.walker import NO_ROLE, PlainParameter, effective_weight, plain_parameters, quant_config_of


@dataclass(frozen=True)
class ExportTensor:
    """One parameter of the plain model, ready to be stored.

    name, role: as in the report.
    bits: active precision.
    codes: int8, true shape; None at 16 and 32 bits.
    step: float32, shape () for "tensor", (rows,) for "channel", (rows, blocks of 64 columns) for "block64"; None at 16
      and 32 bits. rows = dimension 0.
    values: fp16 or float32 tensor at 16 and 32 bits; None otherwise.
    granularity: "tensor", "channel" or "block64".
    """

    name: str
    role: str
    bits: int
    codes: Tensor | None = None
    step: Tensor | None = None
    values: Tensor | None = None
    granularity: str = "tensor"

    def dequantize(self) -> Tensor:
        """The float32 weight, bitwise the one that the quantized model computes with."""
        if self.codes is None:
            return self.values.float()
        return self.codes.float() * spread(self.step, self.codes.shape, self.granularity)


@torch.no_grad()
def export_tensors(model: nn.Module) -> list[ExportTensor]:
    """All parameters of the plain model under the current assignment, in the order of its modules.

    `codes * step` equals bitwise the weight that the model uses in eval mode under the same assignment.

    Raises:
      UserError: an alpha of an active precision is not positive (a training script of your own must hold them above
        zero: look at `quant_statistics`), a weight is not finite, or a weight is not float32.
    """
    config = quant_config_of(model)
    exported = []
    for parameter in plain_parameters(model):
        if not torch.isfinite(parameter.latent).all():
            raise UserError(f"{parameter.name} holds numbers that are not finite: the training diverged")
        if parameter.quantizer is None:
            role = config.role_of(parameter.name, parameter.latent.dim()) or NO_ROLE
            values = parameter.latent.detach().clone()
            exported.append(ExportTensor(parameter.name, role, FLOAT_BITS, values=values))
        else:
            exported.append(_export(parameter, parameter.quantizer))
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
    alpha = quantizer.alphas[str(bits)].item()
    if not alpha > 0.0:
        raise UserError(f"{name}: its alpha at {bits} bits is {alpha}, not positive: lower the learning rate of alphas")
    codes, step = quantizer.codes(latent, bits), quantizer.step(latent, bits)
    return ExportTensor(name, quantizer.role, bits, codes, step, granularity=quantizer.scheme.granularity)


@torch.no_grad()
def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """state_dict of the unquantized architecture, holding the weights in use under the current assignment.

    Parameters and buffers, the statistics of the quantizers left out. No tensor is shared with the model.
    """
    was_training = [(module, module.training) for module in latent_weights(model)]
    for module, _ in was_training:
        module.training = False  # reading weights must not move a running statistic
    try:
        names = {id(p.latent): p for p in plain_parameters(model)}
        plain = {}
        for key, tensor in model.state_dict(keep_vars=True).items():
            parameter = names.get(id(tensor))
            if parameter is not None:
                plain[_plain_name(key)] = effective_weight(parameter).detach().clone()
            elif not _inside_quantizer(key):
                plain[key] = tensor.detach().clone()
        return plain
    finally:
        for module, training in was_training:
            module.training = training


@torch.no_grad()
def rederive_scales(model: nn.Module) -> None:
    """Recompute running-absmax statistics from the present latents, in place; call it after averaging checkpoints.

    absmean and lsq were set once at the start, equal in all checkpoints, and stay; 2std-clipped is never stored.
    """
    for quantizer, latent in latent_weights(model).items():
        quantizer.rederive(latent.detach())


def _plain_name(key: str) -> str:
    """`a.parametrizations.weight.original` -> `a.weight`; other names as they are."""
    parts = key.split(".")
    if parts[-1] == "original" and len(parts) >= 3 and parts[-3] == "parametrizations":
        parts = [*parts[:-3], parts[-2]]
    return ".".join(parts)


def _inside_quantizer(key: str) -> bool:
    """Alphas and statistics: `a.parametrizations.weight.0.alphas.1`, `a.parametrizations.weight.0.statistic`."""
    parts = key.split(".")
    return "parametrizations" in parts and ("alphas" in parts or parts[-1] == "statistic")
