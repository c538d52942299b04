"""Latent weights that are brought to their grids beside, or instead of, a straight-through gradient.

`DrawnWeights` says what a `Trainer` asks of such a scheme: a term of the loss on the latents, given as its gradient,
and what is done to them behind an update. ADMM (`admm.py`), the General Quantizer (`gq.py`) and the cosines of linear
QAT and of S8BQAT (`cosine.py`) are such schemes; `drawing.py` chooses by the settings of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.grids import LOW_BITS
from lowbit_k2.losses.co_training import STOCHASTIC, CoTrainingConfig
from lowbit_k2.quant import Allocation


class DrawnWeights:
    """A scheme that does nothing; subclasses write what they need."""

    in_float: ClassVar[bool] = False  # branches run at 32 bits, whatever precision they name

    def check_length(self, updates: int) -> None:
        """Raise ConfigError where the settings make no sense in a training of so many updates."""

    def before_update(self, update: int, done: float) -> None:
        """Update number `update` begins, counted from 1; `done` is the share of the training behind it."""

    def before_step(self) -> Mapping[str, float]:
        """Add to the gradients, which are those of the loss, equal on all ranks; returns metrics."""
        return {}

    def after_step(self, update: int) -> Mapping[str, float]:
        """The optimiser has stepped; returns metrics."""
        return {}

    def finish(self) -> None:
        """The training ends: the weights are those of the low-bit model from here on."""

    @property
    def state(self) -> dict[str, Tensor]:
        """What a run that goes on needs besides the model."""
        return {}

    def load(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Take back `state`; raises UserError where it is that of other tensors."""


def one_allocation(config: CoTrainingConfig, who: str) -> Allocation:
    """The one allocation of low precisions that a run names.

    Args:
      who: needs it, for errors.

    Raises:
      ConfigError: several, or one without 1 to 8 bits.
    """
    named, trained = ",".join(config.precisions), config.trained
    if len(trained) != 1 or STOCHASTIC in config.precisions:
        raise ConfigError("precisions", f"{named}: {who} draws weights to one precision or allocation: name one")
    [allocation] = trained.values()
    if not set(allocation.bits.values()) & set(LOW_BITS):
        raise ConfigError("precisions", f"{named}: {who} has tables of 1 to 8 bits: name one of these")
    return allocation
