"""The General Quantizer in the training loop (arXiv 2210.09188): float updates, weights overwritten now and then.

Every so many updates each kernel becomes its soft assignment to a mu-law table; alpha rises linearly with the share of
the training that is done, so that assignments get harder; where the training ends they are hard. `quant/general.py`
says what a tensor has in the meantime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.quant.general import GQ_SCALES, GeneralQuantization
from lowbit_k2.quant.soft_assignment import LARGEST_ALPHA
from lowbit_k2.quant.switching import Assignment
from lowbit_k2.train.drawn import DrawnWeights


@dataclass(frozen=True)
class GqConfig(Config):
    """How the General Quantizer is applied."""

    gq_every: int = option(
        1000, "quantizer gq: updates between applications; 0: none, straight-through gradients instead", low=0
    )
    gq_alpha_start: float = option(10.0, "inverse width of the assignments at first", above=0, high=LARGEST_ALPHA)
    gq_alpha_end: float = option(400.0, "the same at the end of the training", above=0, high=LARGEST_ALPHA)
    gq_scale: str = option("none", "what a table within [-1, 1] is multiplied by, per tensor", choices=GQ_SCALES)

    def check(self) -> None:
        if self.gq_alpha_end < self.gq_alpha_start:
            raise ConfigError(
                "gq_alpha_end", f"{self.gq_alpha_end:g} lies below gq_alpha_start {self.gq_alpha_start:g}: it must rise"
            )

    def alpha(self, done: float) -> float:
        """Of the share of the training that is done, 0 to 1."""
        return self.gq_alpha_start + (self.gq_alpha_end - self.gq_alpha_start) * done


class GeneralizedWeights(DrawnWeights):
    """A `GeneralQuantization` that goes along with the updates of a `Trainer`."""

    def __init__(self, model: nn.Module, assignments: Sequence[Assignment], config: GqConfig) -> None:
        """
        Args:
          model: with quantizers "gq", on its device.
          assignments: all precisions that are trained.

        Raises:
          UserError: no tensor has the quantizer under these precisions.
        """
        self.config, self.alpha = config, config.gq_alpha_start
        self.general = GeneralQuantization(model, assignments)

    def check_length(self, updates: int) -> None:
        if self.config.gq_every > updates:
            raise ConfigError(
                "gq_every", f"{self.config.gq_every} is more than the {updates} updates of this training: lower it"
            )

    def before_update(self, update: int, done: float) -> None:
        self.alpha = self.config.alpha(done)
        self.general.set_alpha(self.alpha)

    def after_step(self, update: int) -> dict[str, float]:
        """`gq_alpha`, and of an application `gq_moved`, see `GeneralQuantization.apply`."""
        metrics = {"gq_alpha": self.alpha}
        return metrics if update % self.config.gq_every else metrics | {"gq_moved": self.general.apply(self.alpha)}

    def finish(self) -> None:
        self.general.apply(None)
