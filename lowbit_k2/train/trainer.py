"""What an update touches, and checkpoints that continue exactly where they stopped.

A run needs counters only to be continued: what is random is drawn from (seed, update), and the order of batches from
(seed, epoch).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.models import model_config_from_dict
from lowbit_k2.data.augment import Augment
from lowbit_k2.data.batch import Batch
from lowbit_k2.errors import UserError
from lowbit_k2.losses.co_training import CoTraining, CoTrainingConfig
from lowbit_k2.losses.output import Criterion
from lowbit_k2.quant import QuantConfig, generator_seed, quant_statistics
from lowbit_k2.train.checkpoint import (
    Checkpoint,
    RunningAverage,
    load_checkpoint,
    load_model_state,
    load_optimizer_tensors,
    numbered,
    optimizer_tensors,
    save_checkpoint,
)
from lowbit_k2.train.distributed import DistributedContext
from lowbit_k2.train.drawn import DrawnWeights
from lowbit_k2.train.metrics import Board, MetricsTracker, describe
from lowbit_k2.train.teacher import Teacher

Schedule = Callable[[int, float], float]  # number of the update, from 1, and share of the training done -> rate
Normalizer = Callable[[Batch], float]  # what the losses of a batch are divided by
Hook = Callable[[nn.Module, int], Mapping[str, float]]  # after an update: model, its number -> metrics
EarlyHook = Callable[[nn.Module, float], Mapping[str, float]]  # before one: model, share done -> metrics


@dataclass(frozen=True)
class LoopConfig(Config):
    """How long, how often, in which arithmetic."""

    num_epochs: int = option(30, "last epoch, counted from 1", low=1)
    seed: int = option(42, low=0, high=2**31 - 1)
    amp: str = option("float32", flag="", choices=("float32", "bfloat16", "float16"))
    average_period: int = option(20, "updates between two steps of the running average of the model", low=1)
    save_every_n: int = option(2000, "updates between two checkpoint-N.pt", low=1)
    save_every_minutes: float = option(10.0, "checkpoint-N.pt also after so many minutes without a checkpoint", above=0)
    keep_last_k: int = option(2, "checkpoint-N.pt that are kept; epoch-N.pt are never removed", low=1)
    log_interval: int = option(20, "updates between two lines of the log and two points of the curves", low=1)
    valid_interval: int = option(0, "updates between two validations within an epoch; 0: at its end only", low=0)
    tensorboard: bool = option(True, "curves under EXP_DIR/tensorboard")
    accum_grad: int = option(1, "batches per update", low=1)

    def check(self) -> None:
        if self.amp == "float16" and not torch.cuda.is_available():
            raise ConfigError("amp", "float16 needs a GPU: use bfloat16 on a CPU")


@dataclass
class Progress:
    """Counters; all that a resumed run needs beside the tensors."""

    epoch: int = 1  # the epoch in progress
    batch: int = 0  # batches of it that were consumed, by all ranks together
    update: int = 0  # updates since the start
    best_valid_loss: float = float("inf")
    seconds: float = 0.0  # spent in updates


class Trainer:
    """Model, objective, optimiser and counters of a run. `update.py` and `epochs.py` hold the verbs."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        co_training: CoTraining,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        normalizer: Normalizer,
        config: LoopConfig,
        exp_dir: Path,
        description: Mapping[str, Any],
        clip_grad_norm: float = 5.0,
        before_update: Sequence[EarlyHook] = (),
        after_update: Sequence[Hook] = (),
        encode: Callable[[str], list[int]] | None = None,
        augment: Augment | None = None,
        mask: Augment | None = None,
        teacher: Teacher | None = None,
        drawn: DrawnWeights | None = None,
        ranks: DistributedContext | None = None,
    ) -> None:
        """
        Args:
          schedule: learning rate by the number of the update and the share of the training that is done.
          normalizer: what a batch adds to the number that losses are divided by.
          description: plain data for the checkpoints' JSON: from it decode.py and export.py rebuild everything.
          before_update, after_update: called in turn before and behind each update; what they return is logged.
          encode: transcript -> token ids, for batches that come without targets.
          augment: (inputs, lengths, generator) -> inputs, which all branches of an update see.
          mask: the same, for what each branch, and a teacher that stands outside, sees by itself.
          teacher: one that is no branch.
          drawn: brings the latent weights to their grids beside the gradient, or in its place.
        """
        self.model, self.criterion, self.co_training = model, criterion, co_training
        self.optimizer, self.schedule, self.normalizer = optimizer, schedule, normalizer
        self.config, self.exp_dir, self.description = config, exp_dir, dict(description)
        self.clip_grad_norm = clip_grad_norm
        self.before_update, self.after_update = tuple(before_update), tuple(after_update)
        self.encode, self.augment, self.mask, self.teacher, self.drawn = encode, augment, mask, teacher, drawn
        self.ranks = ranks or DistributedContext()
        self.device = next(model.parameters()).device
        self.progress = Progress()
        self.batches_per_epoch: int | None = None  # where known
        self.saved_at = time.monotonic()
        self.average = RunningAverage(model, config.average_period)
        self.scaler = make_scaler(enabled=config.amp == "float16")
        self.board = Board(exp_dir, config.tensorboard and self.ranks.is_main)

    @property
    def share_done(self) -> float:
        """Of `num_epochs`, 0 to 1; by whole epochs where their batches are not counted."""
        within = self.progress.batch / self.batches_per_epoch if self.batches_per_epoch else 0.0
        return min(1.0, (self.progress.epoch - 1 + within) / self.config.num_epochs)

    # --- batches ----------------------------------------------------------------------------------------------

    def prepare(self, batch: Batch, number: int, index: int = 0) -> Batch:
        """Batch `index` of update `number` with its targets, augmented, on the model's device: all branches see it."""
        return self.with_targets(self.augmented(batch, self.augment, "spec-augment", number, index))

    def masked(self, batch: Batch, branch: int, number: int, index: int = 0) -> Batch:
        """What branch `branch` of an update sees of its prepared batch; the teacher outside is number -1."""
        return self.augmented(batch, self.mask, f"masks of branch {branch}", number, index)

    def augmented(self, batch: Batch, augment: Augment | None, purpose: str, number: int, index: int) -> Batch:
        """The batch with its inputs changed, as the numbers of the update and of its batch have it drawn."""
        if augment is None:
            return batch
        draw = self.rank_number(number * self.config.accum_grad + index)
        generator = torch.Generator().manual_seed(generator_seed(purpose, self.config.seed, draw))
        return replace(batch, inputs=augment(batch.inputs, batch.input_lens, generator))

    def with_targets(self, batch: Batch) -> Batch:
        """The batch on the model's device, its transcripts as token ids."""
        if batch.targets is None and self.encode is not None:
            batch = replace(batch, targets=[self.encode(text) for text in batch.texts])
        return batch.to(self.device)

    def rank_number(self, number: int) -> int:
        """A number of its own for every rank, from one that all ranks have."""
        return number * self.ranks.world_size + self.ranks.rank

    def all_ranks_size(self, batches: Sequence[Batch]) -> float:
        """The normaliser of an update, over all its batches and ranks."""
        own = float(sum(self.normalizer(batch) for batch in batches))
        return self.ranks.sum_metrics({"size": own}, self.device)["size"]

    @torch.no_grad()
    def all_reduce_gradients(self) -> None:
        """Sum the gradients over the ranks, and take the mean of BatchNorm's running statistics."""
        if self.ranks.world_size == 1:
            return
        buffers = [b for b in self.model.buffers() if b.is_floating_point()]
        self.ranks.sum_tensors([*(p.grad for p in self.model.parameters() if p.grad is not None), *buffers])
        for buffer in buffers:
            buffer.div_(self.ranks.world_size)

    def report(self, metrics: Mapping[str, float], totals: MetricsTracker) -> None:
        """A line of the log and points of the curves, every `log_interval` updates."""
        number = self.progress.update
        if number % self.config.log_interval:
            return
        if self.ranks.is_main:
            logging.info("epoch %d, update %d: %s", self.progress.epoch, number, describe(metrics))
        if self.board.folder is None:
            return
        self.board.write("train/current_", metrics, number)
        self.board.write("train/tot_", totals.means(), number)
        self.board.write("quant/", quant_statistics(self.model), number)

    # --- checkpoints ------------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Write a checkpoint; all ranks hold the same one."""
        self.saved_at = time.monotonic()
        if self.ranks.is_main:
            self.write(name)

    def write(self, name: str) -> None:
        meta = {**self.description, "progress": asdict(self.progress), "update": self.progress.update}
        meta["average_period"] = self.config.average_period
        meta["scaler"] = self.scaler.state_dict()  # plain numbers; empty where there is no float16
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            meta=meta,
            optimizer=optimizer_tensors(self.optimizer),
            model_avg=self.average.mean,
            teacher={} if self.teacher is None else self.teacher.state,
            admm={} if self.drawn is None else self.drawn.state,
        )
        save_checkpoint(self.exp_dir / name, checkpoint)

    @property
    def is_time_to_save(self) -> bool:
        """Whether another `checkpoint-N.pt` is due, by updates or by the clock."""
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.progress.update % self.config.save_every_n == 0 or minutes >= self.config.save_every_minutes

    def save_numbered(self) -> None:
        """`checkpoint-<update>.pt`, of which the last `keep_last_k` are kept."""
        self.save(f"checkpoint-{self.progress.update}.pt")
        if not self.ranks.is_main:
            return
        for number in numbered(self.exp_dir, "checkpoint")[: -self.config.keep_last_k]:
            (self.exp_dir / f"checkpoint-{number}.pt").unlink()

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same configuration.

        Raises:
          UserError: the checkpoint was written with another model, quantization, units or features.
        """
        checkpoint = load_checkpoint(path)
        check_same_run(checkpoint.meta, self.description, path)
        load_model_state(self.model, checkpoint.model, path)
        load_optimizer_tensors(self.optimizer, checkpoint.optimizer)
        self.average.mean = checkpoint.model_avg
        if self.teacher is not None:
            self.teacher.load(checkpoint.teacher)
        if self.drawn is not None:
            self.drawn.load(checkpoint.admm, path)
        if self.scaler.is_enabled() and checkpoint.meta.get("scaler"):
            self.scaler.load_state_dict(checkpoint.meta["scaler"])
        self.progress = Progress(**checkpoint.meta["progress"])
        logging.info("continuing from %s: epoch %d", path, self.progress.epoch)


# sections that one run has alike throughout
IDENTITY = ("model", "quant", "co_training", "tokenizer", "features", "labels", "search", "logits")
FREE = {
    "num_epochs",
    "save_every_n",
    "save_every_minutes",
    "keep_last_k",
    "tensorboard",
    "log_interval",
    "valid_interval",
}
FREE |= {"num_workers", "cache_features", "manifest_dir"}  # may change without changing what is trained


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Compare the description in a checkpoint with that of the run which is to continue it.

    Settings that decide what is trained, and the schedule that brings weights to their grids, must be equal; of other
    differences a warning tells.

    Raises:
      UserError: the fields that differ.
    """
    for section in IDENTITY:
        changed = changes(*_comparable(section, before.get(section), now.get(section)), section)
        if changed:
            raise UserError(
                f"{path} was trained with another {section} configuration ({'; '.join(changed[:3])}): "
                "give the settings that it was made with, or start a new run"
            )
    changed = changes(before.get("schedule", {}), now.get("schedule", {}), "schedule")
    if changed:
        raise UserError(
            f"{path} was trained with another schedule ({'; '.join(changed[:3])}): "
            "give the flags that it was made with, or start a new run"
        )
    others = [changes(before["settings"].get(s), now["settings"].get(s), s) for s in before.get("settings", {})]
    changed = [line for lines in others for line in lines if line.split()[0].split(".")[-1] not in FREE]
    if changed:
        logging.warning("continuing with other settings than before: %s", "; ".join(changed))


def _comparable(section: str, before: Any, now: Any) -> tuple[Any, Any]:
    """Both as this version writes them: a run may go on that an older one began.

    Of the quantization, rules and roles that only one of them knows are left to the names of the tensors, which
    `load_model_state` compares.
    """
    read = {"model": model_config_from_dict, "quant": QuantConfig.from_dict, "co_training": CoTrainingConfig.from_dict}
    if section not in read or before is None:
        return before, now
    before = read[section](before).to_dict()
    if section == "quant" and any(before[name] != now[name] for name in ("rules", "switched_roles")):
        common = set(before["schemes"]) & set(now["schemes"])
        before, now = (
            {**c, "rules": None, "switched_roles": None, "schemes": {r: c["schemes"][r] for r in common}}
            for c in (before, now)
        )
    return before, now


def changes(before: Any, now: Any, name: str) -> list[str]:
    """`section.field old -> new` for every leaf that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [line for key in keys for line in changes(before.get(key), now.get(key), f"{name}.{key}")]
    return [] if before == now else [f"{name} {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:40] + "..."


def newest_checkpoint(exp_dir: Path) -> Path | None:
    """The checkpoint with the most updates, or None where there is none yet; damaged ones are passed over.

    Raises:
      UserError: there are checkpoints, and all of them are damaged.
    """
    updates: dict[Path, int] = {}
    refusal: UserError | None = None
    for name in ("epoch", "checkpoint"):
        for number in reversed(numbered(exp_dir, name)):
            path = exp_dir / f"{name}-{number}.pt"
            try:
                updates[path] = load_checkpoint(path).meta["update"]
                break
            except UserError as error:
                refusal = error
                logging.warning("%s; the one before is looked at", error)
    if not updates and refusal is not None:
        raise refusal
    return max(updates, key=updates.__getitem__, default=None)


def make_scaler(enabled: bool) -> Any:
    """Gradient scaler for float16; torch 2 moved it."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)
