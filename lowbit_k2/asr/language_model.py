"""A trained language model, from a packed file or a checkpoint, at one precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lowbit_k2.asr.model_io import CheckpointChoice, LoadedModel, load_packed, load_trained, parse_allocation
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.models import NEXT_UNIT
from lowbit_k2.data.lm_text import special_units
from lowbit_k2.data.tokenizer import Tokenizer
from lowbit_k2.errors import UserError
from lowbit_k2.models import make_model
from lowbit_k2.models.lm import LanguageModel
from lowbit_k2.quant import Allocation, attach_input_quantizers, use_precision
from lowbit_k2.quant.walker import effective_weight, plain_parameters

ARCHIVE = b"PK"  # how checkpoints begin
HEAD = 16  # bytes that are looked at


@dataclass(frozen=True)
class TrainedLm:
    """A language model in eval mode.

    Attributes:
      model: on `device`, with plain weights, which have the values of their precision.
      boundary, unknown: ids of `<sos/eos>` and `<unk>`.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    boundary: int
    unknown: int
    device: torch.device


def load_language_model(path: Path, precision: str = "", device: str | torch.device = "cpu") -> TrainedLm:
    """Read a language model.

    Args:
      path: a packed file, a checkpoint, or the folder of a training, of which the last epoch is taken.
      precision: of a checkpoint, as `parse_allocation` reads it; "" is the highest that was trained.

    Raises:
      UserError: there is none, it is damaged, a model of speech, or was not trained at this precision.
    """
    loaded = load_any(path, precision)
    if NEXT_UNIT not in loaded.model_config.networks:
        raise UserError(f"{path} is a {loaded.model_config.kind} model of speech: give one that train_lm.py trained")
    units = special_units(loaded.tokenizer)
    model = loaded.model
    if loaded.quant_config is not None:
        model = plain_model(loaded, parse_allocation(precision or loaded.usual_precision, loaded))
    return TrainedLm(model.to(device).eval(), loaded.tokenizer, *units, torch.device(device))


@torch.no_grad()
def plain_model(loaded: LoadedModel, allocation: Allocation) -> nn.Module:
    """The model at one precision without quantizers, so that nothing is quantized again at each pass."""
    model = make_model(loaded.model_config, for_training=False)
    with use_precision(loaded.model, allocation):
        for parameter in plain_parameters(loaded.model):
            model.get_parameter(parameter.name).copy_(effective_weight(parameter))
    attach_input_quantizers(model, {row.name: row.input_bits for row in loaded.report.rows if row.input_bits})
    return model


def load_any(path: Path, precision: str) -> LoadedModel:
    """A model of any kind from any of its files."""
    if path.is_dir():
        return load_trained(CheckpointChoice(exp_dir=path))[0]
    if is_checkpoint(path):
        return load_trained(CheckpointChoice(checkpoint=path))[0]
    if precision:
        raise ConfigError("precision", f"is fixed in {path}, a packed file: leave it out")
    return load_packed(path)


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as checkpoints do."""
    return _head(path).startswith(ARCHIVE)


def is_model_file(path: Path) -> bool:
    """Whether a file begins as checkpoints or packed files do; text does not."""
    head = _head(path)
    return head.startswith(ARCHIVE) or (head[4:8] == bytes(4) and head[8:9] == b"{")


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)
