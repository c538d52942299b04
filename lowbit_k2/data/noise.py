"""Mix noise (MUSAN or any other cuts) into training utterances, the same at every visit of the same epoch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit_k2.core.config import Config, ConfigError, option

if TYPE_CHECKING:
    from lhotse.cut import Cut


@dataclass(frozen=True)
class NoiseConfig(Config):
    """icefall's values for MUSAN."""

    probability: float = option(0.5, "share of the utterances that get noise", low=0, high=1)
    min_snr: float = option(10.0, "dB: the loudest noise")
    max_snr: float = option(20.0, "dB: the faintest")

    def check(self) -> None:
        if self.min_snr > self.max_snr:
            raise ConfigError("min_snr", f"{self.min_snr} is larger than max_snr {self.max_snr}")


def add_noise(cut: Cut, noises: Sequence[Cut], config: NoiseConfig, seed: int, epoch: int) -> Cut:
    """Lay random stretches of noise under a cut, end to end until it is covered.

    Which noise, where in it and how loud is a pure function of (seed, epoch, cut id) and of the noises' order: no
    generator has a state that a resumed run would lack.

    Returns:
      A cut of the same id, duration and number of frames. lhotse mixes its audio or its stored features.
    """
    rng = random.Random(f"{seed}/{epoch}/{cut.id}")  # seeded by a hash of the text, equal in all processes
    if rng.random() >= config.probability:
        return cut
    snr = rng.uniform(config.min_snr, config.max_snr)
    mixed, covered = cut, 0.0
    while cut.duration - covered > 0.1:  # a rest of less than 0.1 s stays clean
        noise = noises[rng.randrange(len(noises))]
        length = min(noise.duration, cut.duration - covered)
        offset = rng.uniform(0.0, noise.duration - length)
        piece = noise.truncate(offset=round(offset, 2), duration=round(length, 2))
        mixed = mixed.mix(piece, offset_other_by=round(covered, 2), snr=snr, preserve_id="left")
        covered += length
    return mixed.truncate(duration=cut.duration, preserve_id=True)
