"""The teacher of a run where it is no branch of the update: see `lowbit_k2.train.teacher`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lowbit_k2.asr.model_io import CheckpointChoice, LoadedModel, load_trained, parse_allocation
from lowbit_k2.asr.training import Run, TrainingConfig
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.models import ModelConfig
from lowbit_k2.data.datamodule import AsrDataModule
from lowbit_k2.data.tokenizer import Tokenizer
from lowbit_k2.losses.co_training import MEAN
from lowbit_k2.losses.objectives import make_criterion
from lowbit_k2.train.teacher import MeanTeacher, Teacher


def outside_teacher(
    config: TrainingConfig, run: Run, model: nn.Module, tokenizer: Tokenizer, data: AsrDataModule | None = None
) -> Teacher | None:
    """The model, or the mean of weights, that `--teacher` names; None where a branch teaches.

    Args:
      model: that is trained, on its device.
      data: None for a model that reads no features.

    Raises:
      UserError: no such checkpoint, or one with other units, features or steps of its output.
    """
    settings = config.co_training
    if not settings.teacher_stands_outside:
        return None
    criterion = make_criterion(config.objective, config.criterion, tokenizer, config.run.lang_dir)
    if settings.teacher == MEAN:
        return MeanTeacher(model, criterion, settings.trained[Path(settings.first).stem], settings.teacher_decay)
    loaded, _ = load_trained(CheckpointChoice(checkpoint=Path(settings.teacher)))
    check_fits(loaded, model.config, tokenizer, data.features.to_dict() if data else {})
    return Teacher(loaded.model.to(run.device), criterion, parse_allocation(loaded.usual_precision, loaded))


def check_fits(loaded: LoadedModel, model: ModelConfig, tokenizer: Tokenizer, features: Mapping[str, Any]) -> None:
    """Frames and classes of the teacher must be the student's; of language models, which have no frames, the units.

    Raises:
      ConfigError: they are not.
    """
    both = (loaded.model_config, model)
    fields = {
        "units": (loaded.tokenizer.pieces(), tokenizer.pieces()),
        "features": (loaded.features, features),
        "objective": [type(config) if config.num_features else None for config in both],
        "topology": [config.topology for config in both],
        "sizes of hidden states": [config.compared_on for config in both],
        "frames per output": [config.num_features and config.encoder.frames_per_output for config in both],
    }
    for name, (teacher, student) in fields.items():
        if teacher != student:
            raise ConfigError("teacher", f"was trained with other {name}: give one that fits, or train one")
