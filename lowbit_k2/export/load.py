"""Packed file -> torch model with float weights `codes * step`, bitwise those of the fake-quantized model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lowbit_k2.errors import UserError
from lowbit_k2.models import ModelConfig, TransducerConfig, config_from_dict, make_model
from lowbit_k2.models.subsampling import subsampled_length
from lowbit_k2.packed import PackedModel, read_packed


@dataclass
class PackedConformer:
    """A plain model in eval mode, and what the file says about it.

    Attributes:
      packed: tokens, feature settings, origin and sizes, and the tensors as they lie in the file.
    """

    model: nn.Module
    model_config: ModelConfig
    packed: PackedModel


def load_packed_model(path: str | Path) -> PackedConformer:
    """Read a packed file and build its model.

    Raises:
      PackedFileError: the file is missing, damaged, foreign, or of another version.
      UserError: its tensors do not fit its configuration, or it is only the float32 measure of a low-bit model.
    """
    packed = read_packed(path)
    if packed.extra.get("reference"):
        raise UserError(
            f"{path} holds the latent weights of a low-bit model, as a measure of size: decode from --output"
        )
    try:
        config = config_from_dict(packed.model_config)
        _check_sizes(config, packed)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    model = make_model(config, for_training=False)
    _fill(model, packed, path)
    return PackedConformer(model.eval(), config, packed)


def _check_sizes(config: ModelConfig, packed: PackedModel) -> None:
    """Every size of the configuration is that of a tensor in the file, so that no lie about it allocates memory."""
    found = {tensor.name: tensor.shape for tensor in packed.tensors}
    if isinstance(config, TransducerConfig):
        encoder, dim = config.encoder, config.decoder_dim
        expected = {
            "decoder.embedding.weight": (config.vocab_size, dim),
            "joiner.encoder_proj.weight": (config.joiner_dim, encoder.d_model),
            "joiner.decoder_proj.weight": (config.joiner_dim, dim),
        }
        if config.context_size > 1:
            expected["decoder.conv.weight"] = (dim, 4, config.context_size)
    else:
        encoder, expected = config, {"ctc_head.weight": (config.vocab_size, config.d_model)}
    d, channels, last = encoder.d_model, encoder.subsampling_channels, encoder.num_layers - 1
    expected |= {
        "encoder.subsampling.conv1.weight": (channels, 1, 3, 3),
        "encoder.subsampling.out.weight": (d, channels * subsampled_length(encoder.num_features)),
        f"encoder.layers.{last}.ff1.w1.weight": (encoder.ffn_dim, d),
        f"encoder.layers.{last}.conv.depthwise.weight": (d, 1, encoder.conv_kernel),
    }
    for name, shape in expected.items():
        if found.get(name) != shape:
            raise UserError(
                f"its configuration wants {name} as {shape}, the file has {found.get(name)}: export it again"
            )
    layers = {name.split(".")[2] for name in found if name.startswith("encoder.layers.") and name.count(".") > 2}
    if len(layers) != config.num_layers:
        raise UserError(f"its configuration wants {config.num_layers} layers, the file has {len(layers)}")


def _fill(model: nn.Module, packed: PackedModel, path: str | Path) -> None:
    state = {tensor.name: torch.from_numpy(tensor.dequantize()) for tensor in packed.tensors}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} does not fit its own configuration: {first}") from None
    missing = [name for name in missing if not name.endswith(".num_batches_tracked")]  # counts training batches
    if missing or unexpected:
        odd = f"lacks {missing[0]}" if missing else f"holds the foreign tensor {unexpected[0]}"
        raise UserError(f"{path} {odd}: it was made for another version of the model, export it again")
