"""Training several precisions of one set of latent weights in one update (arXiv 2505.21245).

    L = L_teacher + lambda1 * sum_i L_i + lambda2 * sum_i KL(SG[p_teacher] || p_i)

The branches i are the other precisions and stochastic precision ("sp"), in which every layer draws 1 or 2 bits
anew at each update. In the paper the teacher is the 2-bit branch. Each branch sees the same batch with dropout of
its own and goes backward before the next one starts, so that only one branch's activations are alive. Losses and KL
are sums over valid frames divided by the number of valid frames. BatchNorm's running statistics are shared: every
branch moves them. What a pass computes, and on which distributions the KL is taken, is the business of `ctc.py` and
`rnnt.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lowbit_k2.errors import UserError
from lowbit_k2.models.masking import valid_frames
from lowbit_k2.quant import QuantConfig, draw_sp, generator_seed, layer_assignment, sp_probabilities, use_precision

STOCHASTIC = "sp"
FLOAT = 32


@dataclass(frozen=True)
class CoTrainingConfig:
    """Which branches an update has, and how their losses are weighted."""

    precisions: tuple[str, ...] = ("2", "1", "sp")
    teacher: str = ""  # "" = the highest precision among the branches; "32" adds a float branch
    lambda1: float = 0.5  # weight of the losses of the other branches
    lambda2: float = 1.0  # weight of the KL terms; 0 trains without them
    kl_warm_step: int = 0  # updates in which lambda2 rises from 0 to its value; 0: constant, as in the paper
    sp_schedule: str = "log"  # "log" (the authors' formula), "linear" or "constant"
    sp_first: float | None = None  # P(lowest bits) at the first layer; None: the schedule's own
    sp_last: float | None = None  # and at the last

    def __post_init__(self) -> None:
        for name in self.precisions:
            if name != STOCHASTIC and not (name.isdigit() and 1 <= int(name) <= FLOAT):
                raise UserError(f"--precisions: '{name}' is neither a number of bits nor 'sp'")
        if not self.bits:
            raise UserError("--precisions needs at least one number of bits, for instance 2,1,sp")
        if len(set(self.precisions)) != len(self.precisions):
            raise UserError(f"--precisions {','.join(self.precisions)} names a branch twice")
        if STOCHASTIC in self.precisions and len([b for b in self.bits if b < FLOAT]) < 2:
            raise UserError("--precisions: 'sp' draws between two precisions, for instance 2,1,sp")
        if self.teacher and not self.teacher.isdigit():
            raise UserError(f"--teacher: '{self.teacher}' is no number of bits")
        if self.teacher and int(self.teacher) != FLOAT and self.teacher not in self.precisions:
            raise UserError(f"--teacher {self.teacher} is not among --precisions {','.join(self.precisions)}")
        for flag, value in (("--sp-first", self.sp_first), ("--sp-last", self.sp_last)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{flag} {value} is no probability: give a number from 0 to 1")
        if self.lambda1 < 0 or self.lambda2 < 0:
            raise UserError("--lambda1 and --lambda2 must not be negative")
        if self.kl_warm_step < 0:
            raise UserError("--kl-warm-step must not be negative")

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

    def kl_weight(self, update: int) -> float:
        """lambda2 at update number `update`, the first being 1: early on, a teacher knows nothing worth learning."""
        return self.lambda2 * min(1.0, update / self.kl_warm_step) if self.kl_warm_step else self.lambda2

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "precisions": list(self.precisions)}


@dataclass(frozen=True)
class Branch:
    """One forward and backward pass of an update."""

    name: str  # "2", "1", "sp", "32": also the name of its curves on TensorBoard
    assignment: int | Mapping[str, int]
    is_teacher: bool = False


@dataclass(frozen=True)
class Posterior:
    """Distributions over the vocabulary on which the KL is taken, and how much each counts.

    Attributes:
      scores: (..., V), float32: log-probabilities, or logits, which are normalised if they are asked for.
      weights: (...), 0 on padding; those of a frame sum to 1.
    """

    scores: Tensor
    weights: Tensor
    normalized: bool = True

    @cached_property
    def log_probs(self) -> Tensor:
        """(..., V)."""
        return self.scores if self.normalized else self.scores.log_softmax(dim=-1)

    @classmethod
    def of_frames(cls, log_probs: Tensor, lens: Tensor) -> Posterior:
        """One distribution per frame, (N, T, V); `lens` (N,) says how many of them are valid."""
        return cls(log_probs, valid_frames(lens, log_probs.size(1)).to(log_probs.dtype))


@dataclass(frozen=True)
class Taught:
    """What branches need of the teacher's posterior p with weights w; no gradient leads back.

    Attributes:
      weighted_probs: (..., V), w p.
      negative_entropy: scalar, sum of w p log p.
    """

    weighted_probs: Tensor
    negative_entropy: Tensor

    @classmethod
    @torch.no_grad()
    def by(cls, posterior: Posterior) -> Taught:
        log_probs = replace(posterior, scores=posterior.scores.detach()).log_probs
        weighted_probs = log_probs.exp().mul_(posterior.weights[..., None])
        return cls(weighted_probs, _inner(weighted_probs, log_probs))


@dataclass(frozen=True)
class BranchOutput:
    """What one pass of a recogniser hands to the objective.

    Attributes:
      loss: scalar, summed over the batch.
      num_frames: valid encoder frames of the batch.
      posteriors: the distributions that are compared between branches, in the same order in every branch.
      parts: summed losses that `loss` is made of, where there are several; they are logged.
      shared: what the other branches take over from the teacher's pass (prune ranges); nothing in it has a graph.
    """

    loss: Tensor
    num_frames: int
    posteriors: tuple[Posterior, ...]
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Any = None


class CoTraining:
    """Draws the branches of an update and runs them."""

    def __init__(self, config: CoTrainingConfig, quant_config: QuantConfig, num_layers: int, seed: int) -> None:
        self.config = config
        self.quant_config = quant_config
        self.probabilities = sp_probabilities(num_layers, config.sp_schedule, config.sp_first, config.sp_last)
        self.seed = seed

    def branches(self, update: int) -> list[Branch]:
        """The branches of update number `update`, teacher first; equal on all ranks and after a resume."""
        teacher = self.config.teacher_bits
        result = [Branch(str(teacher), teacher, is_teacher=True)]
        result += [Branch(str(bits), bits) for bits in self.config.bits if bits != teacher]
        if STOCHASTIC in self.config.precisions:
            generator = torch.Generator().manual_seed(generator_seed("sp", self.seed, update))
            quantized = [bits for bits in self.config.bits if bits < FLOAT]
            draw = draw_sp(self.probabilities, generator, (quantized[0], quantized[-1]))
            result.append(Branch(STOCHASTIC, layer_assignment(self.quant_config, draw)))
        return result

    def backward(
        self,
        model: nn.Module,
        forward: Callable[[Any], BranchOutput],
        update: int,
        num_frames: int,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
    ) -> dict[str, float]:
        """Run every branch on one batch and accumulate its gradients.

        Args:
          model: the quantized model, in train mode.
          forward: runs the model once on the batch, under the precision that is set here; it gets what the teacher's
            pass shared, None in the teacher's own.
          update: the number of the update; fixes the stochastic draws.
          num_frames: valid encoder frames of the whole update, which may have several batches.
          backward: called with each branch's loss (a gradient scaler puts its own here).

        Returns:
          This batch's share, per valid frame, of `loss` (the total), `loss_<branch>`, `<part>_<branch>` and
          `kl_<branch>`.
        """
        metrics: dict[str, float] = {"loss": 0.0}
        branches = self.branches(update)
        kl_weight = self.config.kl_weight(update)
        teaches = kl_weight > 0 and len(branches) > 1
        teacher: list[Taught] = []
        shared = None
        for branch in branches:
            with use_precision(model, branch.assignment):
                out = forward(shared)
                own = out.loss / num_frames
                loss = own if branch.is_teacher else self.config.lambda1 * own
                if teacher:
                    divergence = divergence_from(teacher, out.posteriors) / num_frames
                    loss = loss + kl_weight * divergence
                    metrics[f"kl_{branch.name}"] = divergence.item()
                backward(loss)
            if branch.is_teacher:
                teacher, shared = [Taught.by(p) for p in out.posteriors] if teaches else [], out.shared
            metrics[f"loss_{branch.name}"] = own.item()
            metrics |= {f"{part}_{branch.name}": value.item() / num_frames for part, value in out.parts.items()}
            metrics["loss"] += loss.item()
        return metrics


def kl_divergence(teacher: Sequence[Posterior], student: Sequence[Posterior]) -> Tensor:
    """Sum over all distributions of weight * KL(teacher || student), natural logarithm.

    No gradient flows into the teacher, whose weights are used: both must have the same valid positions.
    """
    return divergence_from([Taught.by(p) for p in teacher], student)


def divergence_from(teacher: Sequence[Taught], student: Sequence[Posterior]) -> Tensor:
    """`kl_divergence`, where the teacher serves several students: sum w KL(p || q) = sum w p log p - sum w p log q.

    Two inner products, since on a transducer's lattice these tensors are the largest of a pass; like distributions
    give exactly 0.
    """
    pairs = zip(teacher, student, strict=True)
    return torch.stack([p.negative_entropy - _inner(p.weighted_probs, q.log_probs) for p, q in pairs]).sum()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))
