"""Try the largest batches of an epoch before it starts: memory that runs out should do so now, not after hours."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from lowbit_k2.data.batch import Batch
from lowbit_k2.errors import UserError, is_out_of_memory
from lowbit_k2.train.trainer import Trainer
from lowbit_k2.train.update import run_branches


def scan_for_oom(trainer: Trainer, batches: Mapping[str, Batch]) -> None:
    """Run every branch forward and backward on each batch, with the optimiser's memory taken; nothing is learned.

    The training that follows is the same, bit for bit, as without.

    Args:
      batches: by what makes them large.

    Raises:
      UserError: one of them does not fit.
    """
    model, device = trainer.model, trainer.device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    moments = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
    model.train()
    try:
        for reason, batch in batches.items():
            logging.info("trying the batch of the %s: %s", reason, describe_batch(batch))
            try_batch(trainer, reason, batch)
    finally:
        del moments
        trainer.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        if device.type == "cuda":
            logging.info("they take %.1f GB of the GPU", torch.cuda.max_memory_allocated(device) / 1e9)
            torch.cuda.empty_cache()


def try_batch(trainer: Trainer, reason: str, batch: Batch) -> None:
    """All branches on one batch; gradients add up."""
    try:
        run_branches(trainer, trainer.with_targets(batch), 1, trainer.normalizer(batch))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"the batch of the {reason} ({describe_batch(batch)}) does not fit in memory: lower max_duration, "
            "or leave longer utterances out"
        ) from None


def describe_batch(batch: Batch) -> str:
    longest = int(batch.input_lens.max())
    if not batch.inputs.is_floating_point():
        return f"{len(batch.ids)} rows of up to {longest} units"
    return f"{len(batch.ids)} utterances of up to {longest} frames"
