"""Quantized inputs: what goes into a Linear or a convolution, on a symmetric grid whose step follows each input.

    x_hat = round(x / step) * step,    step = max|x| / (2^(bits-1) - 1),    d x_hat / dx = 1

in float32, ties to the even number. The maximum is taken over

    Linear        the last dimension: every frame has its own step, as it has in a runtime that goes frame by frame
    convolutions  channels and positions of one sample: a step per sample, since a kernel adds up products over all of
                  them. What pads a batch belongs to it, so mask it with zeros.

Nothing is learned and nothing is stored; the module's input is rounded by a forward pre-hook wherever the module is
called. While the weight of the module is bypassed (`use_precision(model, 32)`) its input is left alone, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lowbit_k2.core.grids import FLOAT_BITS, LOW_BITS, max_code
from lowbit_k2.errors import UserError
from lowbit_k2.quant.config import INPUT_BITS
from lowbit_k2.quant.quantizer import WeightQuantizer

SMALLEST_STEP = 1e-30  # an input of zeros alone still has a step, so that 0 / step is 0 and not NaN


class InputQuantizer:
    """A forward pre-hook.

    quantizer: of the weight, whose bypass it follows; None: always on.
    """

    def __init__(self, name: str, bits: int, quantizer: WeightQuantizer | None = None) -> None:
        self.name, self.bits, self.quantizer = name, bits, quantizer

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.quantizer is not None and self.quantizer.active_bits == FLOAT_BITS:
            return None
        if not inputs:
            raise UserError(f"{self.name}: its module must be called with the input as first positional argument")
        first = inputs[0]
        dims = (-1,) if isinstance(module, nn.Linear) else tuple(range(-1 - len(module.kernel_size), 0))
        return quantize_input(first, self.bits, dims), *inputs[1:]


def quantize_input(x: Tensor, bits: int, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """`x` on its grid of `bits` (2 to 8, or 16), one step for all that `dims` run over; the gradient passes on."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _RoundInput.apply(x, bits, dims)
    return _round(x, bits, dims)


def _round(x: Tensor, bits: int, dims: tuple[int, ...]) -> Tensor:
    top = max_code(bits) if bits in LOW_BITS else 2 ** (bits - 1) - 1
    values = x.detach().float()
    step = (values.abs().amax(dim=dims, keepdim=True) / top).clamp(min=SMALLEST_STEP)
    return (values / step).round_().mul_(step).to(x.dtype)


class _RoundInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, dims: tuple[int, ...]) -> Tensor:
        return _round(x, bits, dims)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def takes_input_quantizer(module: nn.Module) -> bool:
    """Whether the module's forward runs, and multiplies its input by its weight.

    MultiheadAttention reads the weight of its output projection without calling that module.
    """
    read_past = type(module).__name__.endswith("NonDynamicallyQuantizableLinear")
    return isinstance(module, (nn.Linear, _ConvNd)) and not read_past


def add_input_quantizer(module: nn.Module, name: str, bits: int, quantizer: WeightQuantizer | None = None) -> None:
    """Register the hook on one module, of which `takes_input_quantizer` is true."""
    assert takes_input_quantizer(module), (name, module)
    if not input_quantizers(module):  # a module of two names
        module.register_forward_pre_hook(InputQuantizer(name, bits, quantizer))


def attach_input_quantizers(model: nn.Module, bits: Mapping[str, int]) -> None:
    """Quantize inputs of a plain model, in place: {name of the weight: bits}, as a packed file has them.

    Raises:
      UserError: a name that is no weight of a Linear or convolution, or bits that no input takes.
    """
    for name, wanted in bits.items():
        path, _, attribute = name.rpartition(".")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            module = None
        if module is None or not takes_input_quantizer(module) or attribute != "weight":
            raise UserError(f"{name} is no weight of a Linear or convolution: its input cannot be quantized")
        if wanted not in INPUT_BITS[1:]:
            raise UserError(f"{name}: inputs take 2 to 8 or 16 bits, not {wanted!r}")
        add_input_quantizer(module, name, wanted)
    keep_forward(model)


def keep_forward(model: nn.Module) -> None:
    """Keep torch's TransformerEncoderLayer off its fast path, which reads weights without calling their modules."""
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoderLayer) and any(input_quantizers(part) for part in layer.modules()):
            layer.activation_relu_or_gelu = 0  # the fast path knows these two activations; 0: some other


def input_quantizers(module: nn.Module) -> list[InputQuantizer]:
    """Those of one module."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, InputQuantizer)]
