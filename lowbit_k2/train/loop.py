"""One update, one epoch, one validation pass; checkpoints that continue exactly where they stopped.

Everything random in update n (dropout, SpecAugment, stochastic precision) is drawn from generators seeded by
(seed, n), and the order of batches by (seed, epoch): a resumed run needs counters only, no generator states.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lowbit_k2.data.batch import Batch
from lowbit_k2.errors import UserError
from lowbit_k2.losses.co_training import BranchOutput, CoTraining
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.models.subsampling import subsampled_length
from lowbit_k2.quant import generator_seed, quant_statistics, use_precision
from lowbit_k2.train.checkpoint import (
    Checkpoint,
    RunningAverage,
    load_checkpoint,
    load_model_state,
    load_optimizer_tensors,
    numbered,
    optimizer_tensors,
    save_checkpoint,
    save_tensors,
)
from lowbit_k2.train.distributed import Ranks
from lowbit_k2.train.metrics import Board, FrameMeans, describe
from lowbit_k2.train.optim import OptimConfig, clip_gradients, hold_alphas, noam_rate, set_rate

Augment = Callable[[Tensor, Tensor, torch.Generator], Tensor]
Criterion = Callable[..., BranchOutput]  # CtcCriterion, RnntCriterion
SMALLEST_GRAD_SCALE = 1e-5  # icefall's limit
# May change from one sitting to the next without changing what is trained.
FREE_FLAGS = {"resume", "start_epoch", "start_batch", "num_epochs", "exp_dir", "save_every_n", "keep_last_k"}
FREE_FLAGS |= {"tensorboard", "num_workers", "cache_features", "manifest_dir", "lang_dir", "bpe_model", "num_threads"}
FREE_FLAGS |= {"scan_for_oom", "dry_run", "vocab_size"}


@dataclass(frozen=True)
class LoopConfig:
    """How long, how often, in which arithmetic."""

    num_epochs: int = 30
    seed: int = 42
    amp: str = "float32"  # "float32", "bfloat16" or "float16"
    average_period: int = 20  # updates between two steps of the running average of the model
    save_every_n: int = 2000  # updates between two checkpoint-N.pt
    keep_last_k: int = 2  # checkpoint-N.pt that are kept; epoch-N.pt are never removed
    log_interval: int = 20  # updates
    tensorboard: bool = True
    accum_grad: int = 1  # batches per update

    def __post_init__(self) -> None:
        for name in (
            "num_epochs",
            "average_period",
            "save_every_n",
            "keep_last_k",
            "log_interval",
            "accum_grad",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed {self.seed}: give a number from 0 to {2**31 - 1}")
        if self.amp not in ("float32", "bfloat16", "float16"):
            raise UserError(f"unknown arithmetic '{self.amp}'")
        if self.amp == "float16" and not torch.cuda.is_available():
            raise UserError("--use-fp16 needs a GPU: use --use-bf16 on a CPU")


@dataclass
class Progress:
    """Counters; all that a resumed run needs beside the tensors."""

    epoch: int = 1  # the epoch in progress
    batch: int = 0  # batches of it that were consumed
    update: int = 0  # updates since the start
    best_valid_loss: float = float("inf")
    seconds: float = 0.0  # spent in updates


class Trainer:
    """Holds what an update touches. The recipe's train.py drives it epoch by epoch."""

    def __init__(
        self,
        model: nn.Module,
        objective: CoTraining,
        optimizer: torch.optim.Optimizer,
        optim_config: OptimConfig,
        config: LoopConfig,
        encode: Callable[[str], list[int]],
        augment: Augment | None,
        exp_dir: Path,
        meta: dict[str, Any],
        ranks: Ranks | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.optim_config, self.config = optim_config, config
        self.criterion = criterion or CtcCriterion()
        self.encode, self.augment = encode, augment
        self.exp_dir, self.meta, self.ranks = exp_dir, meta, ranks or Ranks()
        self.device = next(model.parameters()).device
        self.progress = Progress()
        self.average = RunningAverage(model, config.average_period)
        self.scaler = make_scaler(enabled=config.amp == "float16")
        self.board = Board(exp_dir, config.tensorboard and self.ranks.is_main)

    # --- one update -------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, update: int, shared: Any = None) -> BranchOutput:
        """One pass over an augmented batch under the precision in force."""
        targets = [self.encode(text) for text in batch.texts]
        with arithmetic(self.device.type, self.config.amp):
            return self.criterion(self.model, batch.features, batch.feature_lens, targets, update, shared)

    def update(self, batches: list[Batch]) -> dict[str, float]:
        """One update over `accum_grad` batches: every branch forward and backward, clip, step."""
        start = time.perf_counter()
        number = self.progress.update + 1
        torch.manual_seed(generator_seed("dropout", self.config.seed, self.draw(number)))
        rate = noam_rate(number, self.model.config.d_model, self.optim_config)
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        frames = float(sum(int(subsampled_length(batch.feature_lens).sum()) for batch in batches))
        num_frames = int(self.ranks.total({"frames": frames}, self.device)["frames"])
        metrics: dict[str, float] = {}
        for index, batch in enumerate(batches):
            batch = self.to_device(self.augmented(batch, self.draw(number * self.config.accum_grad + index)))
            shares = self.run_branches(batch, number, num_frames)
            metrics = {name: metrics.get(name, 0.0) + value for name, value in shares.items()}
        metrics = self.ranks.total(metrics, self.device)
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(f"the loss of update {number} is {metrics['loss']}")
        self.exchange()
        self.scaler.unscale_(self.optimizer)
        metrics |= clip_gradients(self.optimizer, self.optim_config.clip_grad_norm, self.scaler.is_enabled())
        self.scaler.step(self.optimizer)  # skips an update whose float16 gradients overflowed, and lowers the scale
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_GRAD_SCALE:
            raise FloatingPointError(f"gradients stay infinite at scale {self.scaler.get_scale()}: use bfloat16")
        metrics |= hold_alphas(self.optimizer, self.optim_config.alpha_floor)
        self.progress.update = number
        self.average.step(self.model, number)
        self.progress.seconds += time.perf_counter() - start
        return metrics | {"learning_rate": rate, "frames": float(num_frames)}

    def run_branches(self, batch: Batch, number: int, num_frames: int) -> dict[str, float]:
        """Every branch forward and backward on a batch of update `number`; its share of the update's losses."""

        def forward(shared: Any) -> BranchOutput:
            return self.forward(batch, number, shared)

        return self.objective.backward(self.model, forward, number, num_frames, self.scale_back)

    def draw(self, number: int) -> int:
        """A number of its own for every rank, from one that all ranks have."""
        return number * self.ranks.world_size + self.ranks.rank

    @torch.no_grad()
    def exchange(self) -> None:
        """Sum the gradients over the ranks, and take the mean of BatchNorm's running statistics."""
        if self.ranks.world_size == 1:
            return
        buffers = [b for b in self.model.buffers() if b.is_floating_point()]
        self.ranks.sum_([*(p.grad for p in self.model.parameters() if p.grad is not None), *buffers])
        for buffer in buffers:
            buffer.div_(self.ranks.world_size)

    def scale_back(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def augmented(self, batch: Batch, draw: int) -> Batch:
        """The batch with SpecAugment applied, a pure function of the seed and `draw`."""
        if self.augment is None:
            return batch
        generator = torch.Generator().manual_seed(generator_seed("spec-augment", self.config.seed, draw))
        return replace(batch, features=self.augment(batch.features, batch.feature_lens, generator))

    def to_device(self, batch: Batch) -> Batch:
        return replace(batch, features=batch.features.to(self.device), feature_lens=batch.feature_lens.to(self.device))

    # --- epochs -----------------------------------------------------------------------------------------------

    def train_epoch(self, batches: Iterable[Batch], total: int | None = None) -> dict[str, float]:
        """Train over the batches of `progress.epoch` that are still to come; returns the epoch's means."""
        self.model.train()
        totals, pending = FrameMeans(), []
        name, silent = f"epoch {self.progress.epoch}", not self.ranks.is_main
        bar = tqdm(batches, desc=name, initial=self.progress.batch, total=total, disable=silent)
        for batch in bar:
            pending.append(batch)
            if len(pending) == self.config.accum_grad:
                self.step(pending, totals)
                pending = []
                bar.set_postfix_str(f"loss={totals.means()['loss']:.3f}", refresh=False)
        if pending:
            self.step(pending, totals)
        self.progress.batch = 0
        return totals.means()

    def step(self, batches: list[Batch], totals: FrameMeans) -> None:
        """An update with what belongs to it: counters, curves, the regular checkpoint."""
        metrics = self.guarded_update(batches)
        self.progress.batch += len(batches)
        totals.add(metrics)
        self.report(metrics, totals)
        if self.progress.update % self.config.save_every_n == 0:
            self.save_numbered()

    def guarded_update(self, batches: list[Batch]) -> dict[str, float]:
        """`update`, leaving the model and the batch behind for inspection when it fails."""
        try:
            return self.update(batches)
        except Exception:
            suffix = "" if self.ranks.is_main else f"-rank{self.ranks.rank}"
            self.write(f"bad-model{suffix}.pt")
            content = {
                "features": [b.features for b in batches],
                "feature_lens": [b.feature_lens for b in batches],
                "texts": "\n".join(text for b in batches for text in b.texts),
                "ids": "\n".join(name for b in batches for name in b.ids),
            }
            save_tensors(self.exp_dir / f"bad-batch{suffix}.pt", content)
            logging.error("update failed: see bad-model%s.pt and bad-batch%s.pt in %s", suffix, suffix, self.exp_dir)
            raise

    def report(self, metrics: dict[str, float], totals: FrameMeans) -> None:
        update = self.progress.update
        if update % self.config.log_interval:
            return
        self.board.write("train/current_", metrics, update)
        self.board.write("train/tot_", totals.means(), update)
        self.board.write("quant/", quant_statistics(self.model), update)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """CTC loss per frame of every trained precision, `loss_<bits>`, and their mean, `loss`."""
        self.model.eval()
        means = {precision: FrameMeans() for precision in self.objective.config.trained_precisions}
        for batch in map(self.to_device, batches):
            for precision, mean in means.items():
                with use_precision(self.model, precision):
                    out = self.forward(batch, self.progress.update)
                mean.add({"frames": float(out.num_frames), "loss": out.loss.item() / out.num_frames})
        result = {f"loss_{precision}": mean.means()["loss"] for precision, mean in means.items()}
        result["loss"] = sum(result.values()) / len(result)
        self.board.write("train/valid_", result, self.progress.update)
        return result

    def finish_epoch(self, train: dict[str, float], valid: dict[str, float]) -> None:
        """Log, write `epoch-N.pt`, and `best-valid-loss.pt` when this epoch is the best."""
        epoch = self.progress.epoch
        logging.info("epoch %d, %d updates: %s", epoch, self.progress.update, describe(train))
        logging.info("epoch %d, valid: %s", epoch, describe(valid))
        self.progress.epoch += 1
        best = valid.get("loss", float("inf")) < self.progress.best_valid_loss
        if best:
            self.progress.best_valid_loss = valid["loss"]
        self.save(f"epoch-{epoch}.pt")
        if best:
            self.save("best-valid-loss.pt")

    # --- checkpoints ------------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Write a checkpoint; all ranks hold the same one."""
        if self.ranks.is_main:
            self.write(name)

    def write(self, name: str) -> None:
        meta = {**self.meta, "progress": asdict(self.progress), "update": self.progress.update}
        meta["average_period"] = self.config.average_period
        meta["scaler"] = self.scaler.state_dict()  # plain numbers; empty where there is no float16
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            meta=meta,
            optimizer=optimizer_tensors(self.optimizer),
            model_avg=self.average.mean,
        )
        save_checkpoint(self.exp_dir / name, checkpoint)

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
        for name in ("model", "quant", "co_training", "tokenizer", "features"):
            if checkpoint.meta.get(name) != self.meta.get(name):
                raise UserError(f"{path} was trained with another {name} configuration than the flags describe")
        warn_of_changes(checkpoint.meta.get("flags", {}), self.meta.get("flags", {}))
        load_model_state(self.model, checkpoint.model, path)
        load_optimizer_tensors(self.optimizer, checkpoint.optimizer)
        self.average.mean = checkpoint.model_avg
        if self.scaler.is_enabled() and checkpoint.meta.get("scaler"):
            self.scaler.load_state_dict(checkpoint.meta["scaler"])
        self.progress = Progress(**checkpoint.meta["progress"])
        logging.info("continuing from %s: epoch %d", path, self.progress.epoch)


def warn_of_changes(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Log the flags that differ from those of the run that is continued: it will not be what one sitting gives."""
    changed = [
        f"--{name.replace('_', '-')} {value} -> {now[name]}"
        for name, value in before.items()
        if name not in FREE_FLAGS and now.get(name, value) != value
    ]
    if changed:
        logging.warning("continuing with other flags than before: %s", ", ".join(changed))


def newest_checkpoint(exp_dir: Path) -> Path | None:
    """The checkpoint with the most updates, or None where there is none yet."""
    paths = [exp_dir / f"{name}-{n}.pt" for name in ("epoch", "checkpoint") for n in numbered(exp_dir, name)[-1:]]
    if not paths:
        return None
    return max(paths, key=lambda path: load_checkpoint(path).meta["update"])


def arithmetic(device_type: str, amp: str) -> AbstractContextManager:
    """Autocast to `amp`, a name as in LoopConfig; nothing for float32."""
    return nullcontext() if amp == "float32" else torch.autocast(device_type, dtype=getattr(torch, amp))


def make_scaler(enabled: bool) -> Any:
    """Gradient scaler for float16; torch 2 moved it."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)
