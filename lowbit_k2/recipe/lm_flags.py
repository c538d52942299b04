"""The flags of train_lm.py, from the settings of `lowbit_k2.asr.lm_training`."""

from __future__ import annotations

import argparse
from typing import Any

from lowbit_k2.asr.lm_training import LmDataConfig
from lowbit_k2.asr.training import RunConfig, TrainingConfig
from lowbit_k2.core.lm import language_models
from lowbit_k2.data.text_config import TextConfig
from lowbit_k2.losses.objectives import NoSettings
from lowbit_k2.recipe.flags import add_flags, given, make_parser, read_flags
from lowbit_k2.recipe.training_flags import add_learning_flags, add_run_flags, read_common_flags, training_errors

NOT_HERE = {"vocab_size"}  # fields of a run that concern speech


def lm_training_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """All flags on training and text, with a recipe's defaults."""
    parser = make_parser(description)
    add_run_flags(parser, only=set(RunConfig.__dataclass_fields__) - NOT_HERE)
    model = parser.add_argument_group("model")
    names = [name for kind in language_models() for name in kind.presets]
    model.add_argument("--model", default="small", choices=names, help="size preset")
    add_flags(model, *language_models(), optional=True)
    add_learning_flags(parser)
    add_flags(parser.add_argument_group("text"), LmDataConfig, TextConfig)
    parser.set_defaults(**defaults)
    return parser


def read_lm_training_flags(args: argparse.Namespace) -> TrainingConfig:
    """The settings of a run.

    Raises:
      UserError: values that a field cannot take, or that contradict each other; the line names the flag.
    """
    data = read_flags(LmDataConfig, args, text=read_flags(TextConfig, args), seed=args.seed)
    fields = {name: value for kind in language_models() for name, value in given(args, kind).items()}
    config = TrainingConfig(
        data=data,
        objective="lm",
        preset=args.model,
        model_fields=fields,
        criterion=NoSettings(),
        **read_common_flags(args),
    )
    with lm_training_errors():
        config.model_config(vocab_size=100)
        config.quant_config()
    return config


def lm_training_errors() -> Any:
    """Context in which errors about fields of a run's settings name their flags."""
    return training_errors(*language_models(), LmDataConfig, TextConfig)
