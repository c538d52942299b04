"""Cosines that pull latent weights to their values, and S8BQAT's snaps, in the training loop; see `quant/cosine.py`.

linear      quantized passes with straight-through gradients, as without; the cosine holds latents near the grid
codebook    the same on learned tables
snap_every  S8BQAT: float passes, tables that are the k-means of the weights at `cosine_start`, hard snaps to them
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.quant import Allocation
from lowbit_k2.quant.cosine import CosinePull, SnappedCodebooks
from lowbit_k2.train.drawn import DrawnWeights


@dataclass(frozen=True)
class CosineConfig(Config):
    """Whether and how weights are pulled by cosines."""

    cosine_lambda: float = option(0.0, "weight of a cosine that pulls latents to their grid; S8BQAT has 5e-4", low=0)
    cosine_start: int = option(0, "updates before it begins; S8BQAT's tables are made there", low=0)
    snap_every: int = option(
        0, "S8BQAT, with quantizer codebook: float training, weights put on their tables after so many updates", low=0
    )

    @property
    def is_on(self) -> bool:
        return self.cosine_lambda > 0.0 or self.snap_every > 0


class PulledWeights(DrawnWeights):
    """A `CosinePull` that goes along with the updates of a `Trainer`."""

    def __init__(self, model: nn.Module, allocation: Allocation, config: CosineConfig) -> None:
        """
        Args:
          model: with quantizers, on its device.
          allocation: where its weights are pulled to.

        Raises:
          UserError: no tensor has 1 to 8 bits, or one that is to be snapped has no codebook.
        """
        self.config, self.update = config, 0
        self.snapped = SnappedCodebooks(model, allocation) if config.snap_every else None
        self.pull = self.snapped or CosinePull(model, allocation)

    def check_length(self, updates: int) -> None:
        for name in ("cosine_start", "snap_every"):
            value = getattr(self.config, name)
            if value > updates - (name == "cosine_start"):
                raise ConfigError(name, f"{value} leaves nothing of the {updates} updates of this training: lower it")

    def before_update(self, update: int, done: float) -> None:
        self.update = update
        if self.snapped and update == self.config.cosine_start + 1:
            self.snapped.fit()

    def before_step(self) -> dict[str, float]:
        """`cosine`, what it adds to the loss."""
        if not self.config.cosine_lambda or self.update <= self.config.cosine_start:
            return {}
        return {"cosine": self.pull.add_gradients(self.config.cosine_lambda)}

    def after_step(self, update: int) -> dict[str, float]:
        if self.snapped and update > self.config.cosine_start and update % self.config.snap_every == 0:
            self.snapped.snap()
        return {}

    def finish(self) -> None:
        if self.snapped:
            self.snapped.snap()
