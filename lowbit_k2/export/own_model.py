"""Packed files of any torch model: no tokenizer, no features, no configuration, just the weights.

with use_precision(model, 1):
    save_packed(model, "model.lowbit")
plain = load_packed("model.lowbit", Net())  # never quantized; its outputs are bitwise those of `model`
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowbit_k2.core.grids import ACTIVATION
from lowbit_k2.errors import UserError
from lowbit_k2.export.pack import packed_tensors
from lowbit_k2.packed import PackedModel, read_packed, write_packed
from lowbit_k2.quant import attach_input_quantizers, attach_learned_inputs
from lowbit_k2.quant.inputs import takes_input_quantizer
from lowbit_k2.quant.switching import find_quantizers


def save_packed(
    model: nn.Module, path: str | Path, extra: Mapping[str, Any] | None = None, compress: bool = False
) -> None:
    """Write all weights and float buffers under the current assignment; call it within `use_precision`.

    Args:
      path: written atomically.
      extra: plain data of your own, in the file's header: `read_packed(path).extra`.
      compress: code frequent weights in fewer bits, see `packed/coding.py`.
    Raises:
      UserError: an alpha is not positive, or a weight is not finite or not float32.
      PackedFileError: the file cannot be written.
    """
    packed = PackedModel(
        packed_tensors(model), model_config={}, tokens=b"", tokens_kind="none", extra=dict(extra or {})
    )
    write_packed(path, packed, compress)


def load_packed(path: str | Path, model: nn.Module) -> nn.Module:
    """Fill a plain model of the same architecture, in place, and return it in eval mode.

    Buffers that are no floats (counters, position ids) are not in the file and stay as they are.

    Raises:
      PackedFileError: the file is missing, damaged, foreign, or of another version.
      UserError: the model is quantized, or its tensors are not those of the file.
    """
    if find_quantizers(model):
        raise UserError("load_packed fills a plain model: give it one that quantize_model has not seen")
    packed = read_packed(path)
    own = model.state_dict()
    found = packed.shapes
    for name, shape in found.items():
        if name not in own:
            raise UserError(f"{path} holds {name}, which the model has not: it was saved from another architecture")
        if tuple(own[name].shape) != shape:
            raise UserError(f"{path} holds {name} of shape {shape}, the model has {tuple(own[name].shape)}")
    missing = [name for name, value in own.items() if name not in found and value.is_floating_point()]
    if missing:
        raise UserError(f"{path} lacks {missing[0]}: it was saved from another architecture")
    fill(model, packed)
    attach_packed_inputs(model, packed)
    return model.eval()


def fill(model: nn.Module, packed: PackedModel) -> None:
    """Put the weights of a file into a plain model of its names and shapes, by all names that a tensor has.

    One tensor goes after the other, so that there is never a second copy of all weights in float32.
    """
    own = model.state_dict()  # the parameters and buffers themselves, not copies
    for tensor in packed.weights:
        value = torch.from_numpy(tensor.dequantize())
        for name in tensor.names:
            own[name].copy_(value)


def attach_packed_inputs(model: nn.Module, packed: PackedModel) -> None:
    """Quantize the inputs of a plain model as the file says.

    Raises:
      UserError: a tensor with quantized inputs belongs to no Linear or convolution of the model.
    """
    bits, grids = {}, {}
    for tensor in packed.tensors:
        if tensor.role == ACTIVATION:
            grids[tensor.name] = tensor.input_bits, torch.from_numpy(tensor.dequantize())
        elif tensor.input_bits:
            names = (tensor.name, *tensor.aliases)  # an embedding takes no quantized input, the output tied to it does
            bits |= dict.fromkeys([n for n in names if _takes_input(model, n)] or names[:1], tensor.input_bits)
    attach_input_quantizers(model, bits)
    attach_learned_inputs(model, grids)


def _takes_input(model: nn.Module, name: str) -> bool:
    try:
        return takes_input_quantizer(model.get_submodule(name.rpartition(".")[0]))
    except AttributeError:
        return False
