"""Quantized inputs: what goes into a Linear, a convolution or a product of activations, rounded wherever it is called.

The dynamic quantizer has a symmetric grid whose step follows each input,

    x_hat = round(x / step) * step,    step = max|x| / (2^(bits-1) - 1),    d x_hat / dx = 1

in float32, ties to the even number. The maximum is taken over

    Linear        the last dimension: every frame has its own step, as it has in a runtime that goes frame by frame
    convolutions  channels and positions of one sample: a step per sample, since a kernel adds up products over all of
                  them. What pads a batch belongs to it, so mask it with zeros.

and learns and stores nothing. The elastic one (learned_inputs.py) has a learned grid, kept in the module's child
`input_quantizers`. Both are forward pre-hooks. While the weight of the module is bypassed (`use_precision(model, 32)`)
its input is left alone, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lowbit_k2.core.grids import FLOAT_BITS, LOW_BITS, max_code
from lowbit_k2.errors import UserError
from lowbit_k2.quant.config import DYNAMIC, ELASTIC, INPUT_BITS, SAME, QuantConfig, TensorScheme, low_bits
from lowbit_k2.quant.fake_quant import GradientRule
from lowbit_k2.quant.learned_inputs import ElasticInput, FixedInput, LearnedInput
from lowbit_k2.quant.product import MatrixProduct
from lowbit_k2.quant.quantizer import WeightQuantizer

INPUTS = "input_quantizers"  # child of a module whose inputs have learned grids: one for each of its operands
SMALLEST_STEP = 1e-30  # an input of zeros alone still has a step, so that 0 / step is 0 and not NaN


@dataclass(eq=False)
class ProductSwitch:
    """Stands for the operands of a product where `use_precision` looks for what it can switch; see WeightQuantizer."""

    name: str
    bits: tuple[int, ...]
    switched: bool
    active_bits: int = field(init=False)
    pass_cache: None = None

    def __post_init__(self) -> None:
        self.active_bits = self.bits[0]

    def activate(self, bits: int, cache: object) -> None:
        self.active_bits = bits


class InputQuantizer:
    """A forward pre-hook.

    bits: of the input, or "same".
    quantizer: of the weight, or of the product, whose bypass it follows; None: always on.
    is_learned: the grids are the module's own.
    """

    def __init__(
        self,
        name: str,
        bits: int | str,
        quantizer: WeightQuantizer | ProductSwitch | None = None,
        learned: bool = False,
    ) -> None:
        self.name, self.bits, self.quantizer, self.is_learned = name, bits, quantizer, learned

    @property
    def active_bits(self) -> int:
        """Bits at present; 32 leaves inputs alone, as "same" does at 16."""
        if self.quantizer is not None and self.quantizer.active_bits == FLOAT_BITS:
            return FLOAT_BITS
        if self.bits != SAME:
            return self.bits
        return self.quantizer.active_bits if self.quantizer.active_bits in LOW_BITS else FLOAT_BITS

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        bits = self.active_bits
        if bits == FLOAT_BITS:
            return None
        count = num_operands(module)
        if len(inputs) < count:
            raise UserError(f"{self.name}: its module must be called with the input as first positional argument")
        if self.is_learned:
            grids = getattr(module, INPUTS)
            return *(grid(x, bits) for grid, x in zip(grids, inputs, strict=False)), *inputs[count:]
        dims = (-1,) if isinstance(module, nn.Linear) else tuple(range(-1 - len(module.kernel_size), 0))
        return quantize_input(inputs[0], bits, dims), *inputs[1:]


def num_operands(module: nn.Module) -> int:
    """Inputs of a module that are rounded."""
    return 2 if isinstance(module, MatrixProduct) else 1


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


def add_input_quantizer(
    module: nn.Module,
    name: str,
    scheme: TensorScheme,
    quantizer: WeightQuantizer | ProductSwitch,
    rule: GradientRule,
    frozen: bool = False,
) -> None:
    """Register the hook on one module: a product, or one of which `takes_input_quantizer` is true."""
    if input_quantizers(module):  # a module of two names
        return
    learned = scheme.input_quantizer == ELASTIC
    if learned:
        bits = low_bits(scheme.bits) if scheme.input_bits == SAME else (scheme.input_bits,)
        grids = nn.ModuleList(ElasticInput(bits, rule, frozen) for _ in range(num_operands(module)))
        weight = getattr(module, "weight", None)
        module.add_module(INPUTS, grids if weight is None else grids.to(weight.device))
    module.register_forward_pre_hook(InputQuantizer(name, scheme.input_bits, quantizer, learned))


def add_product_quantizers(model: nn.Module, config: QuantConfig) -> list[ProductSwitch]:
    """Put hooks on the products that the config names, in the order of the modules.

    Raises:
      UserError: their scheme has dynamic inputs, of which a file of weights could not tell.
    """
    found = []
    for name, module in model.named_modules():
        chosen = config.product_scheme(name, type(module)) if isinstance(module, MatrixProduct) else None
        if chosen is None:
            continue
        role, scheme = chosen
        if scheme.input_quantizer == DYNAMIC:
            raise UserError(
                f"{name}: products of activations take elastic inputs: give role {role} that input_quantizer"
            )
        switch = ProductSwitch(name, scheme.bits, role in config.switched_roles)
        add_input_quantizer(module, name, scheme, switch, config.gradient_rule)
        found.append(switch)
    return found


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
        if wanted not in INPUT_BITS[2:-1]:
            raise UserError(f"{name}: inputs take 2 to 8 or 16 bits, not {wanted!r}")
        if not input_quantizers(module):
            module.register_forward_pre_hook(InputQuantizer(name, wanted))
    keep_forward(model)


def attach_learned_inputs(model: nn.Module, grids: Mapping[str, tuple[int, Tensor]]) -> None:
    """Give a plain model, in place, the learned grids of a file: {"<module>.input_quantizers.<i>": (bits, numbers)}.

    Raises:
      UserError: a name that is no input of such a module, a module of which one is missing, or numbers that make no
        grid.
    """
    modules: dict[str, dict[int, tuple[int, Tensor]]] = {}
    for name, grid in grids.items():
        path, _, place = name.rpartition(f".{INPUTS}.")
        numbers = grid[1]
        if (
            not place.isdigit()
            or tuple(numbers.shape) != (3,)
            or not (torch.isfinite(numbers).all() and numbers[0] > 0)
        ):
            raise UserError(f"{name} is no grid of an input: it needs step, threshold and sign")
        modules.setdefault(path, {})[int(place)] = grid
    for path, operands in modules.items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            module = nn.Identity()
        takes = isinstance(module, MatrixProduct) or takes_input_quantizer(module)
        count = num_operands(module)
        if not takes or sorted(operands) != list(range(count)) or len({bits for bits, _ in operands.values()}) > 1:
            raise UserError(f"{path} takes no {len(operands)} learned inputs: the file is of another model")
        module.add_module(INPUTS, nn.ModuleList(FixedInput(operands[i][1]) for i in range(count)))
        module.register_forward_pre_hook(InputQuantizer(path, operands[0][0], learned=True))


def keep_forward(model: nn.Module) -> None:
    """Keep torch's TransformerEncoderLayer off its fast path, which reads weights without calling their modules."""
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoderLayer) and any(input_quantizers(part) for part in layer.modules()):
            layer.activation_relu_or_gelu = 0  # the fast path knows these two activations; 0: some other


def input_quantizers(module: nn.Module) -> list[InputQuantizer]:
    """Those of one module."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, InputQuantizer)]


def product_switches(model: nn.Module) -> list[ProductSwitch]:
    """Those of all products."""
    hooks = (hook for m in model.modules() if isinstance(m, MatrixProduct) for hook in input_quantizers(m))
    return [hook.quantizer for hook in hooks if isinstance(hook.quantizer, ProductSwitch)]


def learned_inputs(model: nn.Module) -> Iterator[tuple[str, LearnedInput, InputQuantizer]]:
    """Name, grid and hook of every learned input, `<module>.input_quantizers.<i>`, in the order of the modules."""
    for name, module in model.named_modules():
        if INPUTS in name.split("."):
            continue
        for hook in input_quantizers(module):
            for i, grid in enumerate(getattr(module, INPUTS) if hook.is_learned else ()):
                yield f"{name}.{INPUTS}.{i}".removeprefix("."), grid, hook


def elastic_inputs(model: nn.Module) -> list[ElasticInput]:
    """The grids that are trained."""
    return [grid for _, grid, _ in learned_inputs(model) if isinstance(grid, ElasticInput)]
