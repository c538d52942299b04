"""Which scheme brings latent weights to their grids, by the settings of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.losses.co_training import CoTrainingConfig
from lowbit_k2.train.admm import AdmmConfig, AdmmWeights
from lowbit_k2.train.cosine import CosineConfig, PulledWeights
from lowbit_k2.train.drawn import DrawnWeights, one_allocation
from lowbit_k2.train.gq import GeneralizedWeights, GqConfig


@dataclass(frozen=True)
class DrawingConfig(Config):
    """The settings of all schemes, of which a run has one at most.

    Attributes:
      quantizer: of the tensors of 1 to 8 bits.
    """

    quantizer: str = option("linear", flag="")
    admm: AdmmConfig = field(default_factory=AdmmConfig)
    gq: GqConfig = field(default_factory=GqConfig)
    cosine: CosineConfig = field(default_factory=CosineConfig)

    def check(self) -> None:
        given = "snap_every" if self.cosine.snap_every else "cosine_lambda"
        if self.admm.every and self.quantizer != "linear":
            raise ConfigError("quantizer", f"{self.quantizer}: ADMM needs an even grid: take linear")
        if self.admm.every and self.cosine.is_on:
            raise ConfigError(given, "and ADMM exclude each other: leave one of them out")
        if self.cosine.is_on and self.quantizer == "gq":
            raise ConfigError(given, "does not go with quantizer gq, which has no such term: take linear or codebook")
        if self.cosine.snap_every and self.quantizer != "codebook":
            raise ConfigError("snap_every", f"needs tables, which quantizer {self.quantizer} has not: take codebook")

    @property
    def uses_gq(self) -> bool:
        """Whether the General Quantizer overwrites or softens weights."""
        return self.quantizer == "gq" and self.gq.gq_every > 0

    def check_precisions(self, co_training: CoTrainingConfig) -> None:
        """Raise ConfigError where the scheme needs other precisions; before anything is made."""
        if self.admm.every:
            one_allocation(co_training, "ADMM")
        elif self.cosine.is_on:
            one_allocation(co_training, "a cosine")

    def schedule(self, num_epochs: int) -> dict[str, Any]:
        """What a run that goes on must have alike, as plain data: a checkpoint holds it."""
        found: dict[str, Any] = {}
        if self.uses_gq:
            found |= {**self.gq.to_dict(), "num_epochs": num_epochs}  # the weights are hard where these end
        if self.cosine.is_on:
            found |= self.cosine.to_dict()
        return found


def drawn_weights(model: nn.Module, config: DrawingConfig, co_training: CoTrainingConfig) -> DrawnWeights | None:
    """What the trainer needs for the scheme of a run, None for straight-through gradients alone.

    Args:
      model: with quantizers, made with the run's own configuration.

    Raises:
      UserError: the scheme needs other precisions or quantizers.
    """
    if config.admm.every:
        return AdmmWeights(model, one_allocation(co_training, "ADMM"), config.admm)
    if config.uses_gq:
        return GeneralizedWeights(model, list(co_training.trained.values()), config.gq)
    if config.cosine.is_on:
        return PulledWeights(model, one_allocation(co_training, "a cosine"), config.cosine)
    return None
