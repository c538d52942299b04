"""The flags of train_hubert.py, from the settings of `lowbit_k2.asr.hubert_training`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowbit_k2.asr.hubert_training import DISTILLATION, HubertDataConfig
from lowbit_k2.asr.training import RunConfig, TrainingConfig
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.data.datamodule import DataConfig
from lowbit_k2.data.noise import NoiseConfig
from lowbit_k2.losses.co_training import MEAN
from lowbit_k2.losses.objectives import OBJECTIVES, objectives_of
from lowbit_k2.recipe.flags import add_flags, make_parser, read_flags
from lowbit_k2.recipe.training_flags import (
    NOISE,
    add_dry_run,
    add_learning_flags,
    add_run_flags,
    read_common_flags,
    training_errors,
)

UNITS = {"lang_dir", "bpe_model", "vocab_size"}  # fields of a run that concern units
FEATURES = {"on_the_fly_feats", "cache_features", "feature_normalize"}  # fields of data that concern features


def hubert_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """All flags on training and data, with a recipe's defaults."""
    parser = make_parser(description)
    run = add_run_flags(parser, only=set(RunConfig.__dataclass_fields__) - UNITS)
    add_dry_run(run, "storage, operations and estimated run time of --model by scheme and bits")
    model = parser.add_argument_group("model and objective")
    objectives = objectives_of((HubertConfig,))
    model.add_argument("--objective", default=next(iter(objectives)), choices=list(objectives), help="what is learnt")
    model.add_argument(
        "--model", default="base", choices=list(HubertConfig.sizes), help="size; a student has its teacher's"
    )
    add_flags(model, *(objective.settings for objective in objectives.values()))
    add_learning_flags(parser)
    data = parser.add_argument_group("data")
    add_flags(data, HubertDataConfig)
    add_flags(data, DataConfig, only=set(DataConfig.__dataclass_fields__) - FEATURES)
    add_flags(data, NoiseConfig, prefix=NOISE)
    parser.set_defaults(**defaults)
    return parser


def read_hubert_flags(args: argparse.Namespace) -> TrainingConfig:
    """The settings of a run.

    Raises:
      UserError: values that a field cannot take, or that contradict each other; the line names the flag.
    """
    noise = read_flags(NoiseConfig, args, NOISE)
    speech = read_flags(DataConfig, args, noise=noise, spec_augment=None, seed=args.seed)
    config = TrainingConfig(
        data=read_flags(HubertDataConfig, args, speech=speech),
        objective=args.objective,
        preset=args.model,
        criterion=read_flags(OBJECTIVES[args.objective].settings, args),
        **read_common_flags(args),
    )
    with hubert_errors():
        config.quant_config()
        return _as_student(config) if config.objective == DISTILLATION else config


def _as_student(config: TrainingConfig) -> TrainingConfig:
    """A student begins as its teacher."""
    teacher = config.co_training.teacher
    if not config.co_training.teacher_stands_outside or teacher == MEAN:
        raise ConfigError("teacher", "is needed: the checkpoint of the float model, as epoch-10.pt")
    if not Path(teacher).is_file():
        raise ConfigError("teacher", f"{teacher} does not exist: give a checkpoint")
    return replace(config, run=replace(config.run, init_from=config.run.init_from or Path(teacher)))


def hubert_errors() -> Any:
    """Context in which errors about fields of a run's settings name their flags."""
    settings = (objective.settings for objective in objectives_of((HubertConfig,)).values())
    return training_errors(HubertDataConfig, *settings)
