"""The flags of train.py, from the settings of `lowbit_k2.asr.training`; names as icefall's where it has them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lowbit_k2.asr.training import QuantOptions, RunConfig, TrainingConfig
from lowbit_k2.core.config import Config, ConfigError
from lowbit_k2.core.encoders import ENCODERS, of_each_layer
from lowbit_k2.core.lm import LanguageModelConfig
from lowbit_k2.core.models import MODEL_KINDS, EncoderModelConfig
from lowbit_k2.data.augment import SpecAugmentConfig
from lowbit_k2.data.datamodule import DataConfig
from lowbit_k2.data.features import read_feature_config
from lowbit_k2.data.noise import NoiseConfig
from lowbit_k2.errors import UserError
from lowbit_k2.losses.co_training import CoTrainingConfig
from lowbit_k2.losses.objectives import OBJECTIVES, speech_objectives
from lowbit_k2.recipe.flags import (
    add_flags,
    add_plugin_argument,
    errors_name_flags,
    given,
    make_parser,
    read_flags,
    str2bool,
)
from lowbit_k2.search.architecture import Architecture
from lowbit_k2.train.admm import AdmmConfig
from lowbit_k2.train.cosine import CosineConfig
from lowbit_k2.train.gq import GqConfig
from lowbit_k2.train.optim import OptimConfig
from lowbit_k2.train.trainer import LoopConfig

NOISE, SPEC_AUGMENT, ADMM = "musan-", "spec-aug-", "admm-"


def training_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """All flags on training and data, with a recipe's defaults; the recipe may add its own."""
    parser = make_parser(description)
    run = add_run_flags(parser)
    add_dry_run(run, "parameters, memory and the sizes of packed files by quantization")
    model = parser.add_argument_group("model and objective")
    objectives = speech_objectives()
    model.add_argument("--objective", default="ctc", choices=list(objectives), help="the model and its loss")
    model.add_argument("--model", default="tiny", choices=presets(), help="size preset")
    model.add_argument("--architecture", type=Path, metavar="FILE", help="widths that lowbit_k2.recipe.search found")
    add_flags(model, *model_configs(), optional=True)
    add_flags(model, *dict.fromkeys(objective.settings for objective in objectives.values()))
    add_learning_flags(parser)
    add_data_flags(parser)
    parser.set_defaults(**defaults)
    return parser


def add_dry_run(group: argparse._ActionsContainer, printed: str) -> None:
    """`--dry-run`, alone or with true or false."""
    help_ = f"print {printed}, and stop; needs no data"
    group.add_argument("--dry-run", type=str2bool, nargs="?", const=True, default=False, help=help_)


def add_run_flags(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> argparse._ArgumentGroup:
    """Where (`only` these fields of RunConfig), how long and in which arithmetic; the group of these flags."""
    run = parser.add_argument_group("run")
    add_plugin_argument(run)
    add_flags(run, RunConfig, only=only)
    add_flags(run, LoopConfig)
    run.add_argument("--use-fp16", type=str2bool, default=False, help="mixed precision in float16 (GPU)")
    run.add_argument("--use-bf16", type=str2bool, default=False, help="mixed precision in bfloat16 (CPU or GPU)")
    return run


def add_learning_flags(parser: argparse.ArgumentParser) -> None:
    """Precisions, what brings weights to them, and the optimiser."""
    quantization = parser.add_argument_group("quantization")
    add_flags(quantization, QuantOptions, CoTrainingConfig, GqConfig, CosineConfig)
    add_flags(quantization, AdmmConfig, prefix=ADMM)
    add_flags(parser.add_argument_group("optimiser"), OptimConfig)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that `read_data_flags` reads; `--seed` is the run's own flag."""
    data = parser.add_argument_group("data")
    add_flags(data, DataConfig)
    add_flags(data, NoiseConfig, prefix=NOISE)
    data.add_argument("--enable-spec-aug", type=str2bool, default=True, help="SpecAugment")
    add_flags(data, SpecAugmentConfig, prefix=SPEC_AUGMENT)


def read_data_flags(args: argparse.Namespace) -> DataConfig:
    """How batches are made.

    Raises:
      UserError: values that contradict each other.
    """
    spec_augment = None
    if args.enable_spec_aug:
        # Normalised features have mean 0 in every bin, so that zero is the mean.
        fill = "mean" if args.feature_normalize == "none" else "zero"
        spec_augment = read_flags(SpecAugmentConfig, args, SPEC_AUGMENT, fill=fill)
    noise = read_flags(NoiseConfig, args, NOISE)
    return read_flags(DataConfig, args, noise=noise, spec_augment=spec_augment, seed=getattr(args, "seed", 42))


def read_training_flags(args: argparse.Namespace) -> TrainingConfig:
    """The settings of a run.

    Raises:
      UserError: values that a field cannot take, or that contradict each other; the line names the flag.
    """
    objective = OBJECTIVES[args.objective]
    model_fields = {name: value for cls in model_configs() for name, value in given(args, cls).items()}
    holders = [objective.model, *(ENCODERS.values() if issubclass(objective.model, EncoderModelConfig) else ())]
    known = {name for cls in holders for name in given(args, cls)}
    config = TrainingConfig(
        data=read_data_flags(args),
        objective=args.objective,
        preset=args.model,
        model_fields={name: value for name, value in model_fields.items() if name in known and value is not None},
        criterion=read_flags(objective.settings, args),
        **read_common_flags(args),
    )
    with training_errors():  # what only all of them together tell, now and not after minutes of preparation
        num_features = read_feature_config(config.data.manifest_dir).num_mel_bins
        config = with_architecture(config, args.architecture, num_features)
        config.model_config(config.run.vocab_size, num_features)
        config.quant_config()
    return config


def read_common_flags(args: argparse.Namespace) -> dict[str, Config]:
    """What `add_run_flags` and `add_learning_flags` have added, as fields of `TrainingConfig`."""
    if args.use_fp16 and args.use_bf16:
        raise UserError("--use-fp16 and --use-bf16 exclude each other")
    if args.use_fp16 and not torch.cuda.is_available():
        raise UserError("--use-fp16 needs a GPU: use --use-bf16 on a CPU")
    amp = "float16" if args.use_fp16 else "bfloat16" if args.use_bf16 else "float32"
    return {
        "run": read_flags(RunConfig, args),
        "quant": read_flags(QuantOptions, args),
        "co_training": read_flags(CoTrainingConfig, args),
        "admm": read_flags(AdmmConfig, args, ADMM),
        "gq": read_flags(GqConfig, args),
        "cosine": read_flags(CosineConfig, args),
        "optim": read_flags(OptimConfig, args),
        "loop": read_flags(LoopConfig, args, amp=amp),
    }


def with_architecture(config: TrainingConfig, path: Path | None, num_features: int) -> TrainingConfig:
    """The widths of the layers as a search has found them.

    Raises:
      UserError: the file is damaged or of another model, or other widths are given besides.
    """
    if path is None:
        return config
    encoder = getattr(config.model_config(config.run.vocab_size, num_features), "encoder", None)
    if encoder is None:
        raise UserError(f"--architecture {path}: the model of --objective {config.objective} has no encoder")
    found = Architecture.load(path)
    try:
        widths = found.fields_for(encoder)
    except UserError as error:
        raise UserError(f"--architecture {path} {error}") from None
    for name, own in widths.items():
        if name in config.model_fields and of_each_layer(getattr(encoder, name), encoder.num_layers) != own:
            raise ConfigError(name, f"contradicts --architecture {path}: leave one of them out")
    return replace(config, model_fields={**config.model_fields, **widths})


def training_errors(*more: type[Config]) -> Any:
    """Context in which errors about fields of a run's settings, and of `more` settings, name their flags."""
    plain = (*more, *model_configs(), QuantOptions, CoTrainingConfig, GqConfig, CosineConfig)
    plain += (OptimConfig, LoopConfig, RunConfig, DataConfig)
    prefixed = [(NoiseConfig, NOISE), (SpecAugmentConfig, SPEC_AUGMENT), (AdmmConfig, ADMM)]
    return errors_name_flags([*((cls, "") for cls in plain), *prefixed])


def model_configs() -> list[type[Config]]:
    """Settings of all kinds of encoders and of recognisers, those of users' files included."""
    return [*ENCODERS.values(), *(kind for kind in MODEL_KINDS.values() if not issubclass(kind, LanguageModelConfig))]


def presets() -> list[str]:
    """Names of sizes of any kind."""
    named = [name for cls in model_configs() for name in getattr(cls, "presets", {})]
    return list(dict.fromkeys(named))
