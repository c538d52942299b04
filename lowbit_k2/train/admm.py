"""ADMM in the training loop: float updates whose weights are drawn to tables; see `quant/admm.py` for the equations.

The branch of an update runs in float. Before the optimiser steps, the gradient of the distance is added to that of the
loss; every so many updates comes a projection and a step of the multipliers: an outer iteration. Where the training
ends, the weights are put on their tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.grids import LOW_BITS
from lowbit_k2.losses.co_training import STOCHASTIC, CoTrainingConfig
from lowbit_k2.quant import Allocation
from lowbit_k2.quant.admm import Admm


@dataclass(frozen=True)
class AdmmConfig(Config):
    """Whether and how weights are drawn to tables."""

    every: int = option(0, "ADMM: float training, with a projection after so many updates; 0: none", low=0)
    gamma: float = option(1e-3, "weight of the distance of weights from their tables", above=0)
    inner: int = option(20, "rounds of codes and alpha in a projection, at most", low=1, high=10000)


class DrawnWeights:
    """An `Admm` that goes along with the updates of a `Trainer`."""

    def __init__(self, model: nn.Module, allocation: Allocation, config: AdmmConfig) -> None:
        """
        Args:
          model: with quantizers, made with the config of `with_fitted_steps`, on its device.
          allocation: where its weights are drawn to.

        Raises:
          UserError: no tensor has a table under the allocation, or one whose steps cannot be set.
        """
        self.config = config
        self.admm = Admm(model, allocation, config.gamma, config.inner)

    def before_step(self) -> None:
        """Add to the gradients, which are those of the loss, equal on all ranks."""
        self.admm.add_gradients()

    def after_step(self, update: int) -> dict[str, float]:
        """An outer iteration ends where its updates are over; returns `admm_residual`, see `Admm.residual`."""
        residual = self.admm.residual() if update % self.config.every else self.admm.iterate()
        return {"admm_residual": residual}

    def finish(self) -> None:
        """The training ends: the weights are those of the low-bit model from here on."""
        self.admm.harden()

    @property
    def state(self) -> dict[str, Tensor]:
        return self.admm.state

    def load(self, state: Mapping[str, Tensor], source: Path) -> None:
        """Take back `state`; raises UserError where it is that of other tensors."""
        self.admm.load(state, source)


def drawn_weights(model: nn.Module, config: AdmmConfig, co_training: CoTrainingConfig) -> DrawnWeights | None:
    """What the trainer needs for ADMM, None without it."""
    return DrawnWeights(model, drawn_to(co_training), config) if config.every else None


def drawn_to(config: CoTrainingConfig) -> Allocation:
    """The one allocation of low precisions that a run names.

    Raises:
      ConfigError: several, or one without 1 to 8 bits.
    """
    named, trained = ",".join(config.precisions), config.trained
    if len(trained) != 1 or STOCHASTIC in config.precisions:
        raise ConfigError("precisions", f"{named}: ADMM draws weights to one precision or allocation: name one")
    [allocation] = trained.values()
    if not set(allocation.bits.values()) & set(LOW_BITS):
        raise ConfigError("precisions", f"{named}: ADMM has tables of 1 to 8 bits: name one of these")
    return allocation
