"""Packed file -> torch model with float weights `codes * step`, bitwise those of the fake-quantized model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lowbit_k2.core.models import check_shapes
from lowbit_k2.errors import UserError
from lowbit_k2.export.own_model import attach_packed_inputs, fill
from lowbit_k2.models import ModelConfig, make_model, model_config_from_dict
from lowbit_k2.packed import PackedModel, read_packed


@dataclass
class LoadedPackedModel:
    """A plain model in eval mode, and what the file says about it.

    Attributes:
      packed: tokens, feature settings, origin and sizes, and the tensors as they lie in the file.
    """

    model: nn.Module
    model_config: ModelConfig
    packed: PackedModel


def load_packed_model(path: str | Path) -> LoadedPackedModel:
    """Read a packed file and build its model, of any kind that is registered.

    Raises:
      PackedFileError: the file is missing, damaged, foreign, or of another version.
      UserError: its tensors do not fit its configuration, or it is only the float32 measure of a low-bit model.
    """
    packed = read_packed(path)
    if packed.extra.get("reference"):
        raise UserError(
            f"{path} holds the latent weights of a low-bit model, as a measure of size: decode from the packed file"
        )
    try:
        return restore_packed(packed)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def restore_packed(packed: PackedModel) -> LoadedPackedModel:
    """The plain model, of any kind that is registered, in eval mode.

    Raises:
      UserError: its tensors do not fit its configuration.
    """
    config = model_config_from_dict(packed.model_config)
    shapes = packed.shapes
    check_shapes(config, shapes, for_training=False)
    model = make_model(config, for_training=False)
    missing = [name for name in model.state_dict() if name not in shapes]
    assert all(name.endswith(".num_batches_tracked") for name in missing), missing  # not stored
    fill(model, packed)
    attach_packed_inputs(model, packed)
    return LoadedPackedModel(model.eval(), config, packed)
