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

from lowbit_k2.core.config import Config, option
from lowbit_k2.quant import Allocation
from lowbit_k2.quant.admm import Admm
from lowbit_k2.train.drawn import DrawnWeights


@dataclass(frozen=True)
class AdmmConfig(Config):
    """Whether and how weights are drawn to tables."""

    every: int = option(0, "ADMM: float training, with a projection after so many updates; 0: none", low=0)
    gamma: float = option(1e-3, "weight of the distance of weights from their tables", above=0)
    inner: int = option(20, "rounds of codes and alpha in a projection, at most", low=1, high=10000)


class AdmmWeights(DrawnWeights):
    """An `Admm` that goes along with the updates of a `Trainer`."""

    in_float = True

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

    def before_step(self) -> dict[str, float]:
        self.admm.add_gradients()
        return {}

    def after_step(self, update: int) -> dict[str, float]:
        """An outer iteration ends where its updates are over; returns `admm_residual`, see `Admm.residual`."""
        residual = self.admm.residual() if update % self.config.every else self.admm.iterate()
        return {"admm_residual": residual}

    def finish(self) -> None:
        self.admm.harden()

    @property
    def state(self) -> dict[str, Tensor]:
        return self.admm.state

    def load(self, state: Mapping[str, Tensor], source: Path) -> None:
        self.admm.load(state, source)
