"""One update: every branch forward and backward on each batch, then one step of the optimiser.

Everything random in update n (dropout, SpecAugment, stochastic precision) is drawn from generators seeded by
(seed, n), so that a resumed run needs no generator states.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch

from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.data.batch import Batch
from lowbit_k2.losses.distillation import Target, as_targets, divergence
from lowbit_k2.quant import generator_seed, use_precision
from lowbit_k2.train.optim import clip_gradients, set_rate

if TYPE_CHECKING:
    from lowbit_k2.train.trainer import Trainer

SMALLEST_GRAD_SCALE = 1e-5  # icefall's limit


def update(trainer: Trainer, batches: Sequence[Batch]) -> dict[str, float]:
    """One update over `accum_grad` batches.

    Returns:
      Losses of the update per unit of the normaliser (`loss`, and by branch), gradient norms, `learning_rate`, and
      `frames`, what the losses were divided by.

    Raises:
      FloatingPointError: the loss or a gradient is not finite.
    """
    assert batches, "an update needs a batch"
    start, number = time.perf_counter(), trainer.progress.update + 1
    torch.manual_seed(generator_seed("dropout", trainer.config.seed, trainer.rank_number(number)))
    rate = trainer.schedule(number, trainer.share_done)
    set_rate(trainer.optimizer, rate)
    trainer.optimizer.zero_grad(set_to_none=True)
    size = trainer.all_ranks_size(batches)
    assert size > 0, size
    noted: dict[str, float] = {}
    if trainer.drawn is not None:
        trainer.drawn.before_update(number, trainer.share_done)
    for hook in trainer.before_update:
        noted |= hook(trainer.model, trainer.share_done)
    metrics: dict[str, float] = {}
    for index, batch in enumerate(batches):
        prepared = trainer.prepare(batch, number, index)
        shares = run_branches(trainer, prepared, number, size, partial(trainer.masked, number=number, index=index))
        metrics = {name: metrics.get(name, 0.0) + value for name, value in shares.items()}
    metrics = trainer.ranks.sum_metrics(metrics, trainer.device)
    if not math.isfinite(metrics["loss"]):
        raise FloatingPointError(f"the loss of update {number} is {metrics['loss']}")
    trainer.all_reduce_gradients()
    metrics |= step(trainer)
    if trainer.drawn is not None:
        metrics |= trainer.drawn.after_step(number)
    for hook in trainer.after_update:
        metrics |= hook(trainer.model, number)
    if trainer.teacher is not None:
        trainer.teacher.follow(trainer.model)
    trainer.progress.update = number
    trainer.average.step(trainer.model, number)
    trainer.progress.seconds += time.perf_counter() - start
    return metrics | noted | {"learning_rate": rate, "frames": size}


def run_branches(
    trainer: Trainer,
    batch: Batch,
    number: int,
    size: float,
    view: Callable[[Batch, int], Batch] = lambda batch, branch: batch,
) -> dict[str, float]:
    """Every branch forward and backward on one prepared batch; gradients add up.

    Args:
      number: of the update.
      size: what losses are divided by: the normaliser of the whole update, which may have several batches.
      view: what each branch sees of the batch, by its place; -1 is a teacher that stands outside.

    Returns:
      This batch's share, per unit of `size`, of `loss` (the total), `loss_<branch>`, `<part>_<branch>` and
      `kl_<branch>`.
    """
    metrics, branches = {"loss": 0.0}, trainer.co_training.branches(number)
    teaches = any(branch.distill_weight for branch in branches)
    targets: dict[str, Target] = {}
    shared = None
    if trainer.teacher is not None and teaches:
        with arithmetic(trainer.device.type, trainer.config.amp):
            targets, shared = trainer.teacher.targets(view(batch, -1), number)
    for place, branch in enumerate(branches):
        # ADMM's loss is that of the float weights; the precision says where they are drawn to
        in_float = trainer.drawn is not None and trainer.drawn.in_float
        with use_precision(trainer.model, FLOAT_BITS if in_float else branch.allocation):
            with arithmetic(trainer.device.type, trainer.config.amp):
                out = trainer.criterion(trainer.model, view(batch, place), number, shared)
            assert out.loss.dim() == 0, (branch.name, out.loss.shape)
            own = out.loss / size
            loss = branch.weight * own
            if targets and branch.distill_weight:
                distance = divergence(targets, out.terms, branch.term_weights) / size
                loss = loss + branch.distill_weight * distance
                metrics[f"kl_{branch.name}"] = distance.item()
            trainer.scaler.scale(loss).backward()
        if branch.is_teacher:
            targets = as_targets(out.terms) if teaches else {}
            shared = out.shared
        metrics[f"loss_{branch.name}"] = own.item()
        metrics |= {f"{part}_{branch.name}": value.item() / size for part, value in out.parts.items()}
        metrics["loss"] += loss.item()
    return metrics


def step(trainer: Trainer) -> dict[str, float]:
    """Clip and step; a float16 update whose gradients overflowed is skipped, and the loss scale lowered.

    Raises:
      FloatingPointError: gradients are not finite, in float16 even at the smallest scale.
    """
    scaler, optimizer = trainer.scaler, trainer.optimizer
    scaler.unscale_(optimizer)
    metrics = {} if trainer.drawn is None else dict(trainer.drawn.before_step())
    metrics |= clip_gradients(optimizer, trainer.clip_grad_norm, scaler.is_enabled())
    scaler.step(optimizer)
    scaler.update()
    if scaler.is_enabled() and scaler.get_scale() < SMALLEST_GRAD_SCALE:
        raise FloatingPointError(f"gradients stay infinite at scale {scaler.get_scale()}: use bfloat16")
    return metrics


def arithmetic(device_type: str, amp: str) -> AbstractContextManager:
    """Autocast to `amp`, a name as in LoopConfig; nothing for float32."""
    return nullcontext() if amp == "float32" else torch.autocast(device_type, dtype=getattr(torch, amp))
