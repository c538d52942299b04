"""Settings of the adaptation to speakers at test time (`models/lhuc.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit_k2.core.config import Config, option


@dataclass(frozen=True)
class LhucConfig(Config):
    """Descent on each speaker's vectors: how often and how far."""

    epochs: int = option(
        0, "LHUC: passes over each speaker's hypotheses, before a second search; 0: none", flag="lhuc-epochs", low=0
    )
    lr: float = option(
        0.005, "LHUC: how far a step moves a speaker's vectors, as root mean square", flag="lhuc-lr", above=0
    )
