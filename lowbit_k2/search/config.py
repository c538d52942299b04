"""Settings of a search, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.encoders import whole_numbers
from lowbit_k2.search.space import check_candidates

PARAMETERS, BYTES = "parameters", "bytes"


@dataclass(frozen=True)
class SearchConfig(Config):
    """What is chosen from, what it costs, and how the logits are trained."""

    candidates: tuple[int, ...] | None = option(
        None,
        "widths that each layer may take, from small to large; default: those of arXiv 2206.11643, 0.16 to 1.5 times "
        "the preset's width",
        parse=whole_numbers,
    )
    eta: float = option(
        0.1, "weight of the cost: nats per output frame for a million parameters, or for their bytes", low=0
    )
    cost: str = option(PARAMETERS, "what a width costs", choices=(PARAMETERS, BYTES))
    bits: int = option(4, "precision of the packed file, for --cost bytes", low=1, high=8)
    start_temperature: float = option(1.0, "of the Gumbel-softmax at first", low=0.001, high=100)
    final_temperature: float = option(0.03, "of the Gumbel-softmax at the end", low=0.001, high=100)
    logits_share: float = option(0.05, "of the training utterances, which the logits alone see", above=0, high=0.5)
    logits_epochs: int = option(20, "passes of the logits over their share", low=1)
    logits_lr: float = option(0.05, "learning rate of the logits, constant", above=0, high=10)

    def check(self) -> None:
        if self.candidates is not None:
            check_candidates(self.candidates)
        if self.final_temperature > self.start_temperature:
            raise ConfigError(
                "final_temperature", f"{self.final_temperature:g} must not be above start_temperature: it falls"
            )
