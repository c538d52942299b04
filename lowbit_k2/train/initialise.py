"""Start from another checkpoint: a float model, other precisions, another vocabulary, frozen parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.models.masking import MaskedBatchNorm
from lowbit_k2.quant import plain_name, use_precision
from lowbit_k2.quant.inputs import elastic_inputs
from lowbit_k2.train.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from lowbit_k2.data.batch import Batch
    from lowbit_k2.train.trainer import Trainer


class InitialState:
    """The weights of a checkpoint by their plain names, and the scales of its quantizers."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
          UserError: the file is missing, damaged or no checkpoint.
        """
        self.path = path
        state = load_checkpoint(path).model
        self.weights = {plain: tensor for key, tensor in state.items() if (plain := plain_name(key)) is not None}
        self.scales = {key: tensor for key, tensor in state.items() if plain_name(key) is None}

    @torch.no_grad()
    def copy_weights(self, model: nn.Module) -> None:
        """Into a plain model, before it is quantized, so that statistics are those of these weights.

        Tensors of another vocabulary, and those that the checkpoint lacks, keep their fresh values; both are logged.

        Raises:
          UserError: no tensor fits, or one has another shape for another reason than the vocabulary.
        """
        by_vocabulary = model.config.vocabulary_tensors()
        fresh: list[str] = []
        copied = 0
        for name, tensor in model.state_dict(keep_vars=True).items():
            found = self.weights.get(name)
            if found is not None and found.shape == tensor.shape:
                tensor.copy_(found)
                copied += 1
            elif found is None or name in by_vocabulary:
                fresh.append(name)
            else:
                raise UserError(
                    f"{self.path} has {name} as {tuple(found.shape)}, the model wants {tuple(tensor.shape)}: "
                    "give the sizes that it was trained with"
                )
        if not copied:
            raise UserError(f"{self.path} holds none of the model's tensors: give a checkpoint of the same kind")
        logging.info("%d tensors from %s, %s made anew", copied, self.path, _some(fresh))

    @torch.no_grad()
    def copy_scales(self, model: nn.Module) -> None:
        """Into a quantized model, where it has the precisions of the checkpoint."""
        state = model.state_dict(keep_vars=True)
        known = {k: t for k, t in self.scales.items() if k in state and state[k].shape == t.shape}
        for key, tensor in known.items():
            state[key].copy_(tensor)
        if known:
            logging.info("%d scales from %s", len(known), self.path)


@torch.no_grad()
def measure_inputs(trainer: Trainer, batches: Callable[[], Mapping[str, Batch]]) -> int:
    """Set the learned grids of activations that are not set yet, by a pass over one batch, the same on all ranks.

    BatchNorm takes the statistics of the batch, since it has no others yet; what it keeps stays as it was.

    Args:
      batches: asked for only where there are such grids; the first one is taken.

    Returns:
      How many there are.
    """
    model = trainer.model
    grids = [grid for grid in elastic_inputs(model) if not grid.is_set]
    if not grids:
        return 0
    reason, batch = next(iter(batches().items()))
    low = max(bits for bits in trainer.co_training.config.trained_precisions if bits < FLOAT_BITS)
    norms = [module for module in model.eval().modules() if isinstance(module, MaskedBatchNorm)]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.train().buffers()]
    with use_precision(model, low):
        trainer.criterion(model, trainer.with_targets(batch), 1)
    for buffer, before in kept:
        buffer.copy_(before)
    logging.info("grids of %d activations set by the batch of the %s", len(grids), reason)
    return len(grids)


def freeze(model: nn.Module, prefixes: Sequence[str]) -> int:
    """Hold the parameters of some modules as they are; call it before `quantize_model`, whose scales then hold, too.

    Args:
      prefixes: module names, as "encoder.layers.0".

    Returns:
      How many parameters are held.

    Raises:
      UserError: a prefix that no parameter has.
    """
    held = 0
    for prefix in prefixes:
        chosen: list[Tensor] = [p for n, p in model.named_parameters() if n.startswith(f"{prefix}.") or n == prefix]
        if not chosen:
            raise UserError(f"freeze {prefix}: no parameter has a name that begins so")
        for parameter in chosen:
            parameter.requires_grad_(False)
            held += parameter.numel()
    return held


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} ({shown}{', ...' if len(names) > 3 else ''})" if names else "none"
