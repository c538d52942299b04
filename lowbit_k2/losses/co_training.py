"""The branches of an update: several precisions of one set of latent weights trained together (arXiv 2505.21245).

    L = L_teacher + lambda1 * sum_i L_i + lambda2 * sum_i KL(SG[p_teacher] || p_i)

The branches i are the other precisions and stochastic precision ("sp"), in which every layer draws its precision anew
at each update. In the paper the teacher is the 2-bit branch. It may also stand outside (`train/teacher.py`): a model
that is there already, or the running mean of the weights; then all branches are students. A precision may be named
twice: two passes over the same batch with dropout, and where asked for SpecAugment masks, of their own, drawn together
by the KL (R-Drop, arXiv 2106.14448; consistency-regularised CTC, arXiv 2410.05101).

Each branch goes backward before the next one starts, so that only one branch's activations are alive:
`train/update.py` runs them. BatchNorm's running statistics are shared: every branch moves them. What a pass computes,
and what branches are compared on, is the business of its criterion (`ctc.py`, `rnnt.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.quant import Allocation, draw_sp, generator_seed, sp_probabilities
from lowbit_k2.quant.schedule import SP_SCHEDULES

STOCHASTIC = "sp"
MEAN = "mean"


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
        "branches of an update: bits, files of allocations (*.json), and 'sp' (stochastic); 32 is the float baseline, "
        "1 naive 1-bit training, 1,1 the same on two views of each batch",
        parse=split_names,
    )
    teacher: str = option(
        "",
        "bits of the teacher; default: the highest branch; 32 adds one; or a checkpoint, which stays as it is; or "
        "'mean', the running mean of the weights",
    )
    teacher_decay: float = option(0.999, "of the running mean that teaches, per update", low=0, high=1)
    lambda1: float = option(0.5, "weight of the losses of the other branches", low=0)
    lambda2: float = option(1.0, "weight of the KL terms; 0 trains without them", low=0)
    students: int = option(0, "branches beside the teacher's in an update, drawn anew each time; 0: all", low=0)
    kl_warm_step: int = option(0, "updates in which lambda2 rises from 0; 0: constant, as in the paper", low=0)
    branch_weights: tuple[tuple[str, float], ...] = option(
        (), "weights of single branches in place of lambda1, as sp=0.25,1=0.5", parse=split_weights
    )
    term_weights: tuple[tuple[str, float], ...] = option(
        (), "factors on single terms that branches are compared on, as ctc=0.5,lattice=1", parse=split_weights
    )
    reduce_every: int = option(
        0, "updates after which the next lower of the precisions takes over, as of 8,4,2,1; 0: all together", low=0
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
            if name != STOCHASTIC and not _is_precision(name) and not is_allocation(name):
                raise ConfigError(
                    "precisions",
                    f"{named}: '{name}' is neither a number of bits nor 'sp', nor a file of that kind (.json)",
                )
        if not self.bits and not any(map(is_allocation, self.precisions)):
            raise ConfigError("precisions", "needs at least one number of bits, for instance 2,1,sp")
        stems = [Path(name).stem for name in dict.fromkeys(self.precisions) if is_allocation(name)]
        if len(set(stems)) != len(stems):
            raise ConfigError("precisions", f"{named} names two files alike: rename one")
        if STOCHASTIC in self.precisions and len([b for b in self.bits if b < FLOAT_BITS]) < 2:
            raise ConfigError("precisions", f"{named}: 'sp' draws between two precisions, for instance 2,1,sp")
        inside = _is_precision(self.teacher)
        if (self.teacher.isdigit() and not inside) or self.teacher == STOCHASTIC:
            raise ConfigError("teacher", f"'{self.teacher}' is no number of bits")
        if inside and int(self.teacher) != FLOAT_BITS and self.teacher not in self.precisions:
            raise ConfigError("teacher", f"{self.teacher} is not among the precisions {named}")
        if self.students and self.students >= len(self.precisions):
            raise ConfigError("students", f"must be less than the {len(self.precisions)} branches {named}")
        if self.reduce_every and (inside or self.students or len(self.bits) < len(self.precisions)):
            raise ConfigError(
                "reduce_every",
                f"goes with different numbers of bits alone, {named} or its teacher or students do not fit",
            )
        foreign = [name for name in self.sp_precisions if name not in self.precisions or name == STOCHASTIC]
        if foreign or len(self.sp_precisions) == 1:
            raise ConfigError("sp_precisions", f"{','.join(self.sp_precisions)}: name two or more of {named}")
        for name, weight in self.branch_weights:
            if name not in self.precisions or not 0 <= weight < float("inf"):
                raise ConfigError("branch_weights", f"{name}={weight}: give a branch of {named} and a weight from 0 on")

    @property
    def bits(self) -> tuple[int, ...]:
        """The numbers of bits named, each once, highest first."""
        return tuple(sorted({int(p) for p in self.precisions if _is_precision(p)}, reverse=True))

    @property
    def teacher_stands_outside(self) -> bool:
        """Whether all branches are students: of a checkpoint, or of the mean of the weights."""
        return bool(self.teacher) and not _is_precision(self.teacher)

    @property
    def trained_precisions(self) -> tuple[int, ...]:
        """What the quantizers must hold: the branches' precisions, and 32 for a float teacher.

        Raises:
          UserError: an allocation cannot be read.
        """
        named = {bits for allocation in self.allocations.values() for bits in allocation.bits.values()}
        return tuple(sorted({*self.bits, *named, *([int(self.first)] if self.first.isdigit() else [])}, reverse=True))

    @property
    def allocations(self) -> dict[str, Allocation]:
        """Those of files, by the files' stems; raises UserError where one cannot be read."""
        return {Path(name).stem: _load(name) for name in self.precisions if is_allocation(name)}

    @property
    def trained(self) -> dict[str, Allocation]:
        """What the model is trained to work at, by name."""
        uniform = {str(bits): Allocation.uniform(bits) for bits in self.bits}
        teacher = {self.first: Allocation.uniform(int(self.first))} if self.first.isdigit() else {}
        return {**teacher, **uniform, **self.allocations}

    @property
    def first(self) -> str:
        """The name of the branch that comes first: the teacher, unless that stands outside."""
        if self.teacher and not self.teacher_stands_outside:
            return self.teacher
        return str(self.bits[0]) if self.bits else next(name for name in self.precisions if is_allocation(name))

    @property
    def drawn_bits(self) -> tuple[int, ...]:
        """What stochastic precision draws from, highest first."""
        chosen = (int(name) for name in self.sp_precisions) if self.sp_precisions else self.bits
        return tuple(sorted((bits for bits in chosen if bits < FLOAT_BITS), reverse=True))

    @property
    def num_passes(self) -> int:
        """Forward and backward passes of an update; a teacher that stands outside goes forward besides."""
        if self.reduce_every:
            return 1
        all_passes = len(self.precisions) + (self.first not in self.precisions)
        return min(all_passes, 1 + self.students) if self.students else all_passes

    def kl_weight(self, update: int) -> float:
        """lambda2 at update number `update`, the first being 1: early on, a teacher knows nothing worth learning."""
        return self.lambda2 * min(1.0, update / self.kl_warm_step) if self.kl_warm_step else self.lambda2


def is_allocation(name: str) -> bool:
    """Whether a branch is named by a file."""
    return name.endswith(".json")


@lru_cache(maxsize=64)
def _load(name: str) -> Allocation:
    return Allocation.load(name)


def _is_precision(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 3 and 1 <= int(text) <= FLOAT_BITS


@dataclass(frozen=True)
class Branch:
    """One forward and backward pass of an update.

    Attributes:
      name: "2", "1", "sp", "32", or "1.2" for a second branch at 1 bit: also the name of its curves on TensorBoard.
      allocation: the precisions that it runs at.
      is_teacher: its terms are what the branches behind it are drawn to; it comes first. None is, where the teacher
        stands outside.
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
        config = self.config
        names = sorted((n for n in config.precisions if _is_precision(n)), key=int, reverse=True)
        names += sorted((n for n in config.precisions if not _is_precision(n)), key=lambda n: n == STOCHASTIC)
        first = config.first
        if config.reduce_every:
            stage = min((update - 1) // config.reduce_every, len(config.bits) - 1)
            first, names = str(config.bits[stage]), []
        if first in names:
            names.remove(first)
        if config.students:
            generator = torch.Generator().manual_seed(generator_seed("students", self.seed, update))
            drawn = torch.randperm(len(names), generator=generator)[: config.students]
            names = [names[i] for i in sorted(drawn.tolist())]
        trained = config.trained
        weights, terms, own = dict(config.branch_weights), dict(config.term_weights), []
        for place, name in enumerate([first, *names]):
            is_teacher = place == 0 and not config.teacher_stands_outside
            before = [first, *names][:place].count(name)
            short = Path(name).stem if is_allocation(name) else name
            own.append(
                Branch(
                    short if not before else f"{short}.{before + 1}",
                    self.stochastic(update, before) if name == STOCHASTIC else trained[short],
                    is_teacher,
                    weight=weights.get(name, 1.0 if place == 0 else config.lambda1),
                    distill_weight=0.0 if is_teacher else config.kl_weight(update),
                    term_weights=terms,
                )
            )
        return own

    def stochastic(self, update: int, before: int = 0) -> Allocation:
        """The draw of an update, one precision per layer; `before`: such branches that it has already."""
        purpose = f"{STOCHASTIC}.{before + 1}" if before else STOCHASTIC
        generator = torch.Generator().manual_seed(generator_seed(purpose, self.seed, update))
        drawn = draw_sp(self.probabilities, generator, precisions=self.config.drawn_bits)
        return Allocation.by_layer(self.layer_prefix, drawn)
