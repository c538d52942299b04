"""Torch model -> packed file, under the precisions that are active in the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lowbit_k2.core.encodings import encoding_of
from lowbit_k2.errors import UserError
from lowbit_k2.packed import PackedModel, PackedTensor, write_packed
from lowbit_k2.quant import ExportTensor, export_activations, export_tensors, plain_state_dict, use_precision
from lowbit_k2.quant.walker import NO_ROLE, quant_config_of


class _Config(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


class _Tokenizer(Protocol):
    kind: str
    spells_words: bool

    def to_bytes(self) -> bytes: ...
    def pieces(self) -> list[str]: ...


class Exportable(Protocol):
    """What packing needs of a model; `asr.model_io.LoadedModel` is one."""

    model: nn.Module
    model_config: _Config
    tokenizer: _Tokenizer
    features: Mapping[str, Any]


def pack_model(
    loaded: Exportable, path: str | Path, extra: Mapping[str, Any] | None = None, compress: bool = False
) -> None:
    """Write the packed file of a model under its current assignment; call it within `use_precision`.

    Args:
      loaded: the model with its configuration, tokenizer and feature settings.
      path: written atomically.
      extra: plain data on the origin of the file, for `lowbit-k2 inspect`.
      compress: code frequent weights in fewer bits, see `packed/coding.py`.
    Raises:
      UserError: an alpha is not positive, or a weight is not finite.
      PackedFileError: the file cannot be written.
    """
    write_packed(path, packed_model(loaded, extra), compress)


def packed_model(loaded: Exportable, extra: Mapping[str, Any] | None = None) -> PackedModel:
    """What `pack_model` writes, in memory."""
    return PackedModel(
        tensors=packed_tensors(loaded.model),
        model_config=loaded.model_config.to_dict(),
        tokens=loaded.tokenizer.to_bytes(),
        tokens_kind=loaded.tokenizer.kind,
        features=dict(loaded.features),
        extra=dict(extra or {}),
    )


def export_float(loaded: Exportable, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write the latent float32 weights in the same container: the numerator of the compression ratio.

    For a model trained in few bits the latents are no float model: the file serves as a measure, and `extra` should
    say so (`{"reference": True}` keeps it from being decoded with).
    """
    with use_precision(loaded.model, 32):
        pack_model(loaded, path, extra)


def packed_tensors(model: nn.Module) -> list[PackedTensor]:
    """All parameters under the current assignment, and the float buffers (BatchNorm's mean and variance) as float32.

    What the model's class names in `training_only` is left out.
    """
    unused = tuple(f"{module}." for module in getattr(model, "training_only", ()))
    exported = export_tensors(model)
    tensors = [_pack(tensor) for tensor in exported if not tensor.name.startswith(unused)]
    tensors += map(_pack, export_activations(model))
    names = {name for tensor in exported for name in (tensor.name, *tensor.aliases)}
    config = quant_config_of(model)
    for name, value in plain_state_dict(model).items():
        if name in names or name.startswith(unused):
            continue
        if not value.is_floating_point():  # BatchNorm's counter, of no use in inference
            continue
        if not torch.isfinite(value).all():
            raise UserError(f"{name} holds numbers that are not finite: the training diverged")
        owner = type(model.get_submodule(name.rpartition(".")[0]))
        role = config.role_of(name, value.dim(), owner) or NO_ROLE
        tensors.append(PackedTensor.from_values(name, role, "float32", to_numpy(value)))
    return tensors


def _pack(tensor: ExportTensor) -> PackedTensor:
    packed = _without_notes(tensor)
    if tensor.aliases:
        packed = replace(packed, aliases=tensor.aliases)
    if tensor.input_bits:
        packed = replace(packed, input_bits=tensor.input_bits)
    return packed


def _without_notes(tensor: ExportTensor) -> PackedTensor:
    """The numbers alone."""
    encoding = encoding_of(tensor.bits, is_index=tensor.table is not None).name
    if tensor.codes is None:
        return PackedTensor.from_values(tensor.name, tensor.role, encoding, to_numpy(tensor.values))
    if not (tensor.step > 0).all():  # the statistic is never negative, so this is alpha or an underflow
        raise UserError(f"{tensor.name}: its step at {tensor.bits} bits is not positive: look at its alpha")
    codes, step = to_numpy(tensor.codes), to_numpy(tensor.step)
    table = {} if tensor.table is None else {"table": to_numpy(tensor.table)}
    return PackedTensor.from_codes(tensor.name, tensor.role, encoding, codes, step, tensor.granularity, **table)


def to_numpy(tensor: Tensor):
    """The numbers of a tensor on any device, as a numpy array."""
    return tensor.detach().cpu().numpy()
