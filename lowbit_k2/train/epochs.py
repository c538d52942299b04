"""The verbs of a recipe's epoch loop: train, validate, save."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import torch

from lowbit_k2.data.batch import Batch
from lowbit_k2.losses.distillation import divergence
from lowbit_k2.progress import progress_bar
from lowbit_k2.quant import use_precision
from lowbit_k2.train.checkpoint import save_tensors
from lowbit_k2.train.metrics import MetricsTracker, describe
from lowbit_k2.train.trainer import Trainer
from lowbit_k2.train.update import arithmetic, update


def remaining_epochs(trainer: Trainer) -> Iterator[int]:
    """The numbers of the epochs that are still to come, the one in progress first."""
    first, last = trainer.progress.epoch, trainer.config.num_epochs
    if first > last:
        logging.info("nothing to do: %d epochs are finished", first - 1)
    yield from range(first, last + 1)


def train_epoch(
    trainer: Trainer,
    batches: Iterable[Batch],
    total: int | None = None,
    valid_batches: Callable[[], Iterable[Batch]] | None = None,
) -> dict[str, float]:
    """Train over the batches of the epoch in progress that are still to come.

    Args:
      batches: those from `trainer.progress.batch` on.
      total: batches of the whole epoch, of all ranks, for the rate and the bar, which a terminal alone shows.
      valid_batches: for validations within the epoch (`valid_interval`).

    Returns:
      The epoch's means.
    """
    trainer.model.train()
    trainer.batches_per_epoch = total
    totals, config = MetricsTracker(), trainer.config
    name = f"epoch {trainer.progress.epoch}"
    ranks = trainer.ranks.world_size
    steps = None if total is None else -(-total // ranks)
    if trainer.drawn is not None and steps is not None:
        trainer.drawn.check_length(-(-steps // config.accum_grad) * config.num_epochs)
    done, quiet = trainer.progress.batch // ranks, not trainer.ranks.is_main
    bar = progress_bar(batches, name, initial=done, total=steps, quiet=quiet)
    for group in groups(bar, config.accum_grad):
        metrics = guarded_update(trainer, group)
        trainer.progress.batch += len(group) * ranks
        totals.add(metrics)
        bar.set_postfix_str(f"loss={totals.means()['loss']:.3f}", refresh=False)
        trainer.report(metrics, totals)
        if trainer.is_time_to_save:
            trainer.save_numbered()
        if valid_batches is not None and config.valid_interval and not trainer.progress.update % config.valid_interval:
            keep_if_best(trainer, validate(trainer, valid_batches()))
            trainer.model.train()
    trainer.progress.batch = 0
    if trainer.drawn is not None and trainer.progress.epoch >= config.num_epochs:
        trainer.drawn.finish()
    return totals.means()


def groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """`size` batches at a time; the last group may be smaller."""
    pending: list[Batch] = []
    for batch in batches:
        pending.append(batch)
        if len(pending) == size:
            yield pending
            pending = []
    if pending:
        yield pending


def guarded_update(trainer: Trainer, batches: list[Batch]) -> dict[str, float]:
    """`update`, leaving the model and the batch behind for inspection when it fails."""
    try:
        return update(trainer, batches)
    except Exception:
        suffix = "" if trainer.ranks.is_main else f"-rank{trainer.ranks.rank}"
        trainer.write(f"bad-model{suffix}.pt")
        content = {
            "features": [b.inputs for b in batches],
            "feature_lens": [b.input_lens for b in batches],
            "texts": "\n".join(text for b in batches for text in b.texts),
            "ids": "\n".join(name for b in batches for name in b.ids),
        }
        save_tensors(trainer.exp_dir / f"bad-batch{suffix}.pt", content)
        logging.error("update failed: see bad-model%s.pt and bad-batch%s.pt in %s", suffix, suffix, trainer.exp_dir)
        raise


@torch.no_grad()
def validate(trainer: Trainer, batches: Iterable[Batch]) -> dict[str, float]:
    """Loss per frame of all that is trained, `loss_<name>`, and their mean, `loss`; the main rank's work alone.

    Of a criterion that learns from its teacher alone, that is the distance to it.
    """
    if not trainer.ranks.is_main:
        return {}
    trainer.model.eval()
    trained = trainer.co_training.config.trained
    means = {name: MetricsTracker() for name in trained}
    weights = dict(trainer.co_training.config.term_weights)
    for batch in map(trainer.with_targets, batches):
        targets = None
        for name, mean in means.items():
            with use_precision(trainer.model, trained[name]), arithmetic(trainer.device.type, trainer.config.amp):
                out = trainer.criterion(trainer.model, batch, trainer.progress.update)
            loss = out.loss
            if out.from_teacher and trainer.teacher is not None:
                targets = targets or trainer.teacher.targets(batch, trainer.progress.update)[0]
                loss = divergence(targets, out.terms, weights)
            mean.add({"frames": float(out.num_frames), "loss": loss.item() / out.num_frames})
    result = {f"loss_{name}": mean.means()["loss"] for name, mean in means.items()}
    result["loss"] = sum(result.values()) / len(result)
    trainer.board.write("train/valid_", result, trainer.progress.update)
    epoch, number = trainer.progress.epoch, trainer.progress.update
    logging.info("epoch %d, valid at update %d: %s", epoch, number, describe(result))
    return result


def keep_if_best(trainer: Trainer, valid: dict[str, float]) -> None:
    """Write `best-valid-loss.pt` when no validation before gave as low a loss."""
    if valid.get("loss", float("inf")) < trainer.progress.best_valid_loss:
        trainer.progress.best_valid_loss = valid["loss"]
        trainer.save("best-valid-loss.pt")


def save_epoch(trainer: Trainer, train: dict[str, float], valid: dict[str, float]) -> None:
    """Log, write `best-valid-loss.pt` when this epoch is the best, and `epoch-N.pt`; the next epoch begins here."""
    epoch = trainer.progress.epoch
    logging.info("epoch %d, %d updates: %s", epoch, trainer.progress.update, describe(train))
    trainer.progress.epoch += 1
    keep_if_best(trainer, valid)  # first: a run that is stopped in between does this epoch again
    trainer.save(f"epoch-{epoch}.pt")
