"""Settings of the adaptation to speakers at test time (`models/lhuc.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit_k2.core.config import Config, option


@dataclass(frozen=True)
class LhucConfig(Config):
    """Gradient descent on a speaker's vectors; 0.8 per frame is the rate of Swietojanski and Renals (2014)."""

    epochs: int = option(
        0, "LHUC: passes over each speaker's hypotheses, before a second search; 0: none", flag="lhuc-epochs", low=0
    )
    lr: float = option(0.8, "LHUC: learning rate, on the loss per frame", flag="lhuc-lr", above=0)
