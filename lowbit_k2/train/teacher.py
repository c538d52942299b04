"""Teachers that are no branch of the update: a model that stays as it is, and the running mean of the weights.

They go forward only, at the cost of about a third of a pass. Where the teacher is a branch, `update.py` has it at hand.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lowbit_k2.losses.distillation import Target, as_targets
from lowbit_k2.losses.output import Criterion, TrainingBatch
from lowbit_k2.models.masking import MaskedBatchNorm
from lowbit_k2.quant import Allocation, use_precision


class Teacher:
    """A model that no gradient reaches.

    Attributes:
      state: what a run that goes on needs of it.
    """

    def __init__(self, model: nn.Module, criterion: Criterion, allocation: Allocation) -> None:
        """
        Args:
          model: gives the terms that branches are compared on; put into eval mode.
          allocation: the precisions that it runs at.
        """
        self.model, self.criterion, self.allocation = model.eval(), criterion, allocation
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def targets(self, batch: TrainingBatch, update: int) -> tuple[dict[str, Target], Any]:
        """What branches are drawn to, by name, and what they take over from this pass (prune ranges)."""
        with use_precision(self.model, self.allocation):
            out = self.criterion(self.model, batch, update)
        return as_targets(out.terms), out.shared

    def follow(self, model: nn.Module) -> None:
        """Behind each update of the model that is trained."""

    @property
    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back `state`."""


class MeanTeacher(Teacher):
    """The exponential mean of the latent weights and scales (arXiv 1703.01780), at one of the model's precisions.

    BatchNorm takes the statistics of the batch, since the running ones are those of all precisions together.
    """

    def __init__(self, model: nn.Module, criterion: Criterion, allocation: Allocation, decay: float) -> None:
        super().__init__(copy.deepcopy(model), criterion, allocation)
        self.decay = decay
        for module in self.model.modules():
            if isinstance(module, MaskedBatchNorm):
                module.train()

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """mean = decay * mean + (1 - decay) * weights; buffers as they are."""
        for own, other in zip(self.model.parameters(), model.parameters(), strict=True):
            own.lerp_(other.detach(), 1.0 - self.decay)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)

    @property
    def state(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)
