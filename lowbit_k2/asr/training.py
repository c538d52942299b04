"""Settings and set-up of a training run: what the recipes' train.py scripts share besides the library's own verbs."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from lowbit_k2 import __version__
from lowbit_k2.asr.model_io import describe_tokenizer
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.grids import FLOAT_BITS, GRANULARITIES
from lowbit_k2.core.models import ModelConfig
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.checked import FiniteCheck
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.filter import FilterConfig, filter_cuts
from lowbit_k2.data.tokenizer import Tokenizer
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import remove_unfinished
from lowbit_k2.launch import cpu_info, cpu_name
from lowbit_k2.locks import exclusive
from lowbit_k2.losses.co_training import CoTrainingConfig, split_names
from lowbit_k2.losses.objectives import OBJECTIVES
from lowbit_k2.quant import ACTIVATION_PRESETS, DEFAULT_RULES, PRESETS, QUANTIZERS, QuantConfig
from lowbit_k2.quant.admm import with_fitted_steps
from lowbit_k2.quant.config import INPUT_BITS, SAME
from lowbit_k2.quant.fake_quant import ALPHA_GRAD_SCALES, ALPHA_GRADS, WEIGHT_GRADS
from lowbit_k2.quant.least_squares import ALPHA_INITS
from lowbit_k2.quant.presets import preset_quantizer
from lowbit_k2.quant.scales import STATISTICS
from lowbit_k2.train.admm import AdmmConfig
from lowbit_k2.train.cosine import CosineConfig
from lowbit_k2.train.distributed import DistributedContext, launch_ranks, process_group
from lowbit_k2.train.drawing import DrawingConfig
from lowbit_k2.train.gq import GqConfig
from lowbit_k2.train.initialise import measure_inputs
from lowbit_k2.train.metrics import log_to_file, log_to_screen
from lowbit_k2.train.oom_scan import scan_for_oom
from lowbit_k2.train.optim import OptimConfig
from lowbit_k2.train.trainer import LoopConfig, Normalizer, Trainer, newest_checkpoint

LOCK = ".lock"


@dataclass(frozen=True)
class RunConfig(Config):
    """Where a run reads and writes, where it begins, on how many processes."""

    exp_dir: Path = option(Path("exp"), "checkpoints, logs and results go here")
    lang_dir: Path = option(Path("data/lang_bpe_500"), "folder with tokens.txt and bpe.model")
    bpe_model: Path | None = option(None, "a sentencepiece model; takes the place of --lang-dir")
    world_size: int = option(1, "processes on this machine, one per GPU", low=1, high=4096)
    start_epoch: int = option(1, "if over 1, continue from epoch-(N-1).pt", low=1)
    start_batch: int = option(0, "if positive, continue from checkpoint-N.pt", low=0)
    resume: bool = option(False, "continue from the newest checkpoint, if any")
    init_from: Path | None = option(None, "start with the weights of this checkpoint, a float model's for instance")
    freeze: tuple[str, ...] = option((), "modules that stay as they are, as encoder.subsampling", parse=split_names)
    num_threads: int = option(0, "CPU threads; 0 leaves PyTorch's choice", low=0, high=4096)
    scan_for_oom: bool = option(True, "try the largest batches before epoch 1")
    vocab_size: int = option(500, "tokens, for --dry-run without a lang directory", low=2, high=1048576)

    @property
    def tokens(self) -> Path:
        """What `load_tokenizer` reads."""
        return self.bpe_model or self.lang_dir


@dataclass(frozen=True)
class QuantOptions(Config):
    """A preset of the quantization, and what may be changed in it."""

    preset: str = option("lossless16", "bits by role", flag="quant-config", choices=(*PRESETS, *ACTIVATION_PRESETS))
    quantizer: str | None = option(
        None, "of all tensors with 1 to 8 bits; default: the preset's, mostly linear", choices=QUANTIZERS
    )
    scale: str | None = option(
        None, "linear: statistic of the switched tensors; default: 2std-clipped", choices=STATISTICS
    )
    granularity: str | None = option(
        None, "weights that share a step, in the switched tensors; default: tensor", choices=GRANULARITIES
    )
    input_bits: str | None = option(
        None,
        "activations in front of the switched matrices, 0: float, same: as the weights; default: the preset's",
        choices=tuple(map(str, INPUT_BITS)),
    )
    alpha_grad: str = option(
        "chain", "gradient of alpha: with the factor s, or as the authors' code has it", choices=ALPHA_GRADS
    )
    weight_grad: str = option(
        "identity", "gradient of the latent weights: straight through, or LSQ's mask", choices=WEIGHT_GRADS
    )
    alpha_grad_scale: str = option("none", "LSQ's gradient scale on the alphas", choices=ALPHA_GRAD_SCALES)
    alpha_init: str = option("l2", "where alphas start: nearest to the weights, or 1", choices=ALPHA_INITS)


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of a run.

    Attributes:
      data: how batches are made, of speech or of text.
      objective: one of `losses.objectives.OBJECTIVES`.
      preset: named size of its model.
      model_fields: fields of the model that replace the preset's.
      criterion: settings of the objective's loss.
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: Config = field(default_factory=DataConfig)
    objective: str = "ctc"
    preset: str = "tiny"
    model_fields: Mapping[str, Any] = field(default_factory=dict)
    criterion: Config | None = None
    quant: QuantOptions = field(default_factory=QuantOptions)
    co_training: CoTrainingConfig = field(default_factory=CoTrainingConfig)
    admm: AdmmConfig = field(default_factory=AdmmConfig)
    gq: GqConfig = field(default_factory=GqConfig)
    cosine: CosineConfig = field(default_factory=CosineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    @property
    def drawing(self) -> DrawingConfig:
        """What brings weights to their grids; raises ConfigError where settings exclude each other."""
        return DrawingConfig(
            self.quant.quantizer or preset_quantizer(self.quant.preset), self.admm, self.gq, self.cosine
        )

    def model_config(self, vocab_size: int, num_features: int = 0) -> ModelConfig:
        """The preset with single fields replaced."""
        objective = OBJECTIVES[self.objective]
        decided = objective.model_fields(self.criterion or objective.settings())
        fixed = {"vocab_size": vocab_size, "num_features": num_features, **decided}
        return objective.model.preset(self.preset, **{**self.model_fields, **fixed})

    def quant_config(self, preset: str | None = None, precisions: tuple[int, ...] | None = None) -> QuantConfig:
        """The quantization, holding the precisions that will be trained; float training quantizes nothing.

        Args:
          preset, precisions: in place of those of the settings.
        """
        self.drawing.check_precisions(self.co_training)
        precisions = precisions or self.co_training.trained_precisions
        preset = preset or self.quant.preset
        model = OBJECTIVES[self.objective].model
        own: dict[str, Any] = {"rules": (*model.rules, *DEFAULT_RULES), "layer_prefix": model.layer_prefix}
        if precisions == (FLOAT_BITS,):
            return QuantConfig.preset("float", **own)
        if preset == "float":
            named = ",".join(self.co_training.precisions)
            raise ConfigError("preset", f"float has no tensors for the precisions {named}: use 32")
        options = {
            name: value for name, value in self.quant.to_dict().items() if name != "preset" and value is not None
        }
        if (bits := options.get("input_bits")) not in (None, SAME):
            options["input_bits"] = int(bits)
        if self.quant.quantizer == "gq":
            options["scale"] = self.gq.gq_scale
        try:
            made = QuantConfig.preset(preset, precisions=precisions, **options, **own)
            return with_fitted_steps(made) if self.admm.every else made
        except UserError as error:
            raise ConfigError("precisions", f"{','.join(self.co_training.precisions)}: {error}") from None


@dataclass
class Run:
    """What a script works in: the processes, the device, the checkpoint to continue from (None: a new run)."""

    config: TrainingConfig
    ranks: DistributedContext
    device: torch.device
    start: Path | None
    held: ExitStack = field(default_factory=ExitStack)  # the lock of the folder

    def begin(self, trainer: Trainer, largest_batches: Callable[[], Mapping[str, Batch]]) -> None:
        """Everything is known to be good: resume, open the log, and try the largest batches of a new run."""
        config = self.config.run
        if self.ranks.is_main:
            self.held.enter_context(exclusive(config.exp_dir / LOCK))
        if self.start is not None:
            trainer.resume(self.start)
        if self.ranks.is_main:
            remove_unfinished(config.exp_dir)
            log_to_file(config.exp_dir)
            logging.info("\n%s", "\n".join(describe_machine(self.device, self.ranks)))
        if self.start is None:
            measure_inputs(trainer, largest_batches)
            if config.scan_for_oom:
                scan_for_oom(trainer, largest_batches())


@contextmanager
def start_run(config: TrainingConfig) -> Iterator[Run]:
    """Look at what is there, start the processes, and set seed, threads and device; nothing is written.

    Raises:
      UserError: an older run in the same folder, a checkpoint that does not exist, impossible numbers of processes.
    """
    log_to_screen()
    start = find_start(config.run)  # before there are several processes that would each complain
    with process_group(launch_ranks(config.run.world_size)) as ranks:
        if not ranks.is_main:
            log_to_screen(quiet=True)
        with ExitStack() as held:
            yield Run(config, ranks, set_up_device(config.run.num_threads, config.loop, ranks), start, held)


def find_start(config: RunConfig) -> Path | None:
    """The checkpoint to continue from, None for a new run; never writes over an older run.

    Raises:
      UserError: that checkpoint is missing, or a new run is asked for where there is one already.
    """
    exp_dir = config.exp_dir
    if exp_dir.exists() and not exp_dir.is_dir():
        raise ConfigError("exp_dir", f"{exp_dir} is a file: give a folder, which is made where it is missing")
    if config.init_from is not None and not config.init_from.is_file():
        raise ConfigError("init_from", f"{config.init_from} does not exist: give a checkpoint")
    if config.start_batch > 0 or config.start_epoch > 1:
        name = f"checkpoint-{config.start_batch}" if config.start_batch > 0 else f"epoch-{config.start_epoch - 1}"
        if not (exp_dir / f"{name}.pt").is_file():
            raise UserError(f"{exp_dir / name}.pt does not exist: see what {exp_dir} holds")
        return exp_dir / f"{name}.pt"
    newest = newest_checkpoint(exp_dir)
    if newest is not None and not config.resume:
        raise ConfigError("exp_dir", f"{exp_dir} holds {newest.name} already: set resume, or choose another")
    return newest


def set_up_device(num_threads: int, loop: LoopConfig, ranks: DistributedContext) -> torch.device:
    """Seed, threads and device."""
    if num_threads > 0:
        torch.set_num_threads(num_threads)
    torch.manual_seed(loop.seed)
    torch.set_flush_denormal(True)  # posteriors near zero make denormal numbers, which CPUs handle slowly
    if torch.cuda.is_available():
        return torch.device("cuda", ranks.local_rank)
    if loop.amp == "bfloat16" and not has_bfloat16_arithmetic():
        logging.warning("this CPU has no bfloat16 instructions; float32 will be many times faster than bfloat16")
    return torch.device("cpu")


def has_bfloat16_arithmetic() -> bool:
    """Whether the CPU computes in bfloat16 itself; where it is not known, it is taken to."""
    flags = cpu_info()
    return not flags or any(name in flags for name in ("avx512_bf16", "amx_bf16", " bf16 "))


def describe_machine(device: torch.device, ranks: DistributedContext) -> list[str]:
    """Lines for the head of a log: command, versions, commit, machine."""
    packages = {"lowbit_k2": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("k2", "lhotse", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "none"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name() or platform.processor() or "CPU"
    return [
        "command: " + " ".join(sys.argv),
        "versions: " + ", ".join(f"{name} {number}" for name, number in packages.items()),
        f"commit: {find_commit()}",
        f"machine: {where}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, {ranks.world_size} processes",
    ]


def find_commit() -> str:
    """The commit of the source tree, with a mark where it was changed; "unknown" outside of a repository."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def describe_run(
    config: TrainingConfig,
    model: ModelConfig,
    quant: QuantConfig,
    tokenizer: Tokenizer,
    features: FeatureConfig | None = None,
) -> dict[str, Any]:
    """The part of a checkpoint's JSON that decode.py and export.py rebuild everything from, and all other settings.

    Args:
      features: None of a model that reads text.
    """
    settings = {"data": config.data, "loop": config.loop, "optim": config.optim, "admm": config.admm}
    settings[config.objective] = config.criterion
    return {
        "model": model.to_dict(),
        "quant": quant.to_dict(),
        "co_training": config.co_training.to_dict(),
        "allocations": {name: allocation.to_dict() for name, allocation in config.co_training.allocations.items()},
        "tokenizer": describe_tokenizer(tokenizer),
        "features": features.to_dict() if features else {},
        "schedule": config.drawing.schedule(config.loop.num_epochs),
        "settings": {name: value.to_dict() for name, value in settings.items() if value is not None},
    }


def output_frames(model: ModelConfig) -> Normalizer:
    """What losses are divided by: the valid frames of the network's output."""

    def count(batch: Batch) -> float:
        return float(model.output_lens(batch.input_lens).sum())

    return count


def usable_cuts(
    data: AsrDataModule, tokenizer: Tokenizer, model: ModelConfig, train_cuts: CutSet, valid_cuts: CutSet
) -> tuple[CutSet, CutSet]:
    """Both sets without the cuts that cannot be used; logs how many these are."""
    config = FilterConfig(model.output_lens, features=data.features, unknown=tokenizer.unknown)
    limits = replace(
        config, min_seconds=data.config.min_cut_duration, max_seconds=data.config.max_cut_duration or float("inf")
    )
    train_cuts = _usable(data, tokenizer, train_cuts, limits, "training")
    return train_cuts, _usable(data, tokenizer, valid_cuts, config, "validation")


def _usable(data: AsrDataModule, tokenizer: Tokenizer, cuts: CutSet, config: FilterConfig, role: str) -> CutSet:
    """One set; stored features are looked at, once for all times."""
    check = None if data.config.on_the_fly_feats else FiniteCheck(cuts, data.load, data.config.manifest_dir)
    config = replace(config, is_finite=check) if check else config
    usable, report = filter_cuts(cuts, tokenizer.encode, config, f"the {role} set")
    if check:
        check.save()
    logging.info("%s: %s", role, report)
    return usable
