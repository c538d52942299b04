"""A trained language model, from a packed file or a checkpoint, at one precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from lowbit_k2.asr.model_io import CheckpointChoice, LoadedModel, load_packed, load_trained, parse_allocation
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.models import NEXT_UNIT
from lowbit_k2.data.lm_text import special_units
from lowbit_k2.data.tokenizer import Tokenizer
from lowbit_k2.errors import UserError
from lowbit_k2.models.lm import LanguageModel
from lowbit_k2.quant import Allocation, use_precision

ARCHIVE = b"PK"  # how checkpoints begin


@dataclass(frozen=True)
class TrainedLm:
    """A language model in eval mode.

    Attributes:
      model: on `device`.
      allocation: what `use_precision` gets; None for packed models, whose weights have their values.
      boundary, unknown: ids of `<sos/eos>` and `<unk>`.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    allocation: Allocation | None
    boundary: int
    unknown: int
    device: torch.device

    def precision(self) -> AbstractContextManager:
        """Context in which the model runs at its precision."""
        return nullcontext() if self.allocation is None else use_precision(self.model, self.allocation)


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
    allocation = None
    if loaded.quant_config is not None:
        allocation = parse_allocation(precision or loaded.usual_precision, loaded)
    units = special_units(loaded.tokenizer)
    model = loaded.model.to(device).eval()
    return TrainedLm(model, loaded.tokenizer, allocation, *units, torch.device(device))


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
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(ARCHIVE)) == ARCHIVE
