"""The branches of an update: several precisions of one set of latent weights trained together (arXiv 2505.21245).

    L = L_teacher + lambda1 * sum_i L_i + lambda2 * sum_i KL(SG[p_teacher] || p_i)

The branches i are the other precisions and stochastic precision ("sp"), in which every layer draws its precision anew
at each update. In the paper the teacher is the 2-bit branch. Each branch sees the same batch with dropout of its own
and goes backward before the next one starts, so that only one branch's activations are alive: `train/update.py` runs
them. BatchNorm's running statistics are shared: every branch moves them. What a pass computes, and what branches are
compared on, is the business of its criterion (`ctc.py`, `rnnt.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.quant import Allocation, draw_sp, generator_seed, sp_probabilities
from lowbit_k2.quant.schedule import SP_SCHEDULES

STOCHASTIC = "sp"


def split_names(text: str) -> tuple[str, ...]:
    """`2,1,sp` -> ("2", "1", "sp")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def split_weights(text: str) -> tuple[tuple[str, float], ...]:
    """`sp=0.5,1=1` -> (("sp", 0.5), ("1", 1.0)); raises ValueError for anything else."""
    pairs = (part.partition("=") for part in split_names(text))
    return tuple((name.strip(), float(value)) for name, _, value in pairs)


@dataclass(frozen=True)
class CoTrainingConfig(Config):
    """Which branches an update has, and how their losses are weighted."""

    precisions: tuple[str, ...] = option(
        ("2", "1", STOCHASTIC),
        "branches of an update: bits and 'sp' (stochastic); 32 is the float baseline, 1 naive 1-bit training",
        parse=split_names,
    )
    teacher: str = option("", "bits of the teacher; default: the highest branch; 32 adds one")
    lambda1: float = option(0.5, "weight of the losses of the other branches", low=0)
    lambda2: float = option(1.0, "weight of the KL terms; 0 trains without them", low=0)
    kl_warm_step: int = option(0, "updates in which lambda2 rises from 0; 0: constant, as in the paper", low=0)
    branch_weights: tuple[tuple[str, float], ...] = option(
        (), "weights of single branches in place of lambda1, as sp=0.25,1=0.5", parse=split_weights
    )
    term_weights: tuple[tuple[str, float], ...] = option(
        (), "factors on single terms that branches are compared on, as ctc=0.5,lattice=1", parse=split_weights
    )
    sp_precisions: tuple[str, ...] = option(
        (), "what 'sp' draws from, as 4,2,1; default: all precisions below 32", parse=split_names
    )
    sp_schedule: str = option("log", "P(low bits) by depth; log: the authors' formula", choices=SP_SCHEDULES)
    sp_first: float | None = option(None, "P(low bits) at the first layer; default: the schedule's own", low=0, high=1)
    sp_last: float | None = option(None, "the same at the last layer", low=0, high=1)

    def check(self) -> None:
        named = ",".join(self.precisions)
        for name in self.precisions:
            if name != STOCHASTIC and not _is_precision(name):
                raise ConfigError("precisions", f"{named}: '{name}' is neither a number of bits nor 'sp'")
        if not self.bits:
            raise ConfigError("precisions", "needs at least one number of bits, for instance 2,1,sp")
        if len(set(self.precisions)) != len(self.precisions):
            raise ConfigError("precisions", f"{named} names a branch twice")
        if STOCHASTIC in self.precisions and len([b for b in self.bits if b < FLOAT_BITS]) < 2:
            raise ConfigError("precisions", f"{named}: 'sp' draws between two precisions, for instance 2,1,sp")
        if self.teacher and not _is_precision(self.teacher):
            raise ConfigError("teacher", f"'{self.teacher}' is no number of bits")
        if self.teacher and int(self.teacher) != FLOAT_BITS and self.teacher not in self.precisions:
            raise ConfigError("teacher", f"{self.teacher} is not among the precisions {named}")
        foreign = [name for name in self.sp_precisions if name not in self.precisions or name == STOCHASTIC]
        if foreign or len(self.sp_precisions) == 1:
            raise ConfigError("sp_precisions", f"{','.join(self.sp_precisions)}: name two or more of {named}")
        for name, weight in self.branch_weights:
            if name not in self.precisions or not 0 <= weight < float("inf"):
                raise ConfigError("branch_weights", f"{name}={weight}: give a branch of {named} and a weight from 0 on")

    @property
    def bits(self) -> tuple[int, ...]:
        """The numbers of bits named, highest first."""
        return tuple(sorted((int(p) for p in self.precisions if p != STOCHASTIC), reverse=True))

    @property
    def trained_precisions(self) -> tuple[int, ...]:
        """What the quantizers must hold: the branches' precisions, and 32 for a float teacher."""
        return tuple(sorted({*self.bits, *([int(self.teacher)] if self.teacher else [])}, reverse=True))

    @property
    def teacher_bits(self) -> int:
        return int(self.teacher) if self.teacher else self.bits[0]

    @property
    def drawn_bits(self) -> tuple[int, ...]:
        """What stochastic precision draws from, highest first."""
        chosen = (int(name) for name in self.sp_precisions) if self.sp_precisions else self.bits
        return tuple(sorted((bits for bits in chosen if bits < FLOAT_BITS), reverse=True))

    @property
    def num_passes(self) -> int:
        """Forward and backward passes of an update."""
        return len(self.precisions) + (self.teacher_bits not in self.bits)

    def kl_weight(self, update: int) -> float:
        """lambda2 at update number `update`, the first being 1: early on, a teacher knows nothing worth learning."""
        return self.lambda2 * min(1.0, update / self.kl_warm_step) if self.kl_warm_step else self.lambda2


def _is_precision(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 3 and 1 <= int(text) <= FLOAT_BITS


@dataclass(frozen=True)
class Branch:
    """One forward and backward pass of an update.

    Attributes:
      name: "2", "1", "sp", "32": also the name of its curves on TensorBoard.
      allocation: the precisions that it runs at.
      is_teacher: its terms are what the branches behind it are drawn to; it comes first.
      weight: of its own loss.
      distill_weight: of its divergence from the teacher; 0: none.
      term_weights: factors on single terms of the divergence.
    """

    name: str
    allocation: Allocation
    is_teacher: bool = False
    weight: float = 1.0
    distill_weight: float = 0.0
    term_weights: Mapping[str, float] = field(default_factory=dict)


class CoTraining:
    """Says which branches an update has."""

    def __init__(self, config: CoTrainingConfig, num_layers: int, layer_prefix: str, seed: int) -> None:
        """
        Args:
          num_layers: what stochastic precision draws for.
          layer_prefix: layer i is the module `layer_prefix`.i.
          seed: of the draws.
        """
        self.config, self.layer_prefix, self.seed = config, layer_prefix, seed
        self.probabilities = sp_probabilities(num_layers, config.sp_schedule, config.sp_first, config.sp_last)

    def branches(self, update: int) -> list[Branch]:
        """The branches of update number `update`, teacher first; equal on all ranks and after a resume."""
        teacher = self.config.teacher_bits
        allocations = {str(bits): Allocation.uniform(bits) for bits in self.config.bits if bits != teacher}
        if STOCHASTIC in self.config.precisions:
            allocations[STOCHASTIC] = self.stochastic(update)
        weights, terms = dict(self.config.branch_weights), dict(self.config.term_weights)
        students = [
            Branch(
                name,
                allocation,
                weight=weights.get(name, self.config.lambda1),
                distill_weight=self.config.kl_weight(update),
                term_weights=terms,
            )
            for name, allocation in allocations.items()
        ]
        own = weights.get(str(teacher), 1.0)
        return [Branch(str(teacher), Allocation.uniform(teacher), is_teacher=True, weight=own), *students]

    def stochastic(self, update: int) -> Allocation:
        """The draw of an update, one precision per layer."""
        generator = torch.Generator().manual_seed(generator_seed(STOCHASTIC, self.seed, update))
        drawn = draw_sp(self.probabilities, generator, precisions=self.config.drawn_bits)
        return Allocation.by_layer(self.layer_prefix, drawn)
