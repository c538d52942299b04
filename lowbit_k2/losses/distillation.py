"""What branches of an update are compared on, and how: distributions by KL, features by squared error or cosine.

A pass names its terms (`{"ctc": Posterior(...), "encoder": Features(...)}`). The teacher's are turned into targets,
which no gradient leads back through; every other branch is compared with them name by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit_k2.models.masking import valid_frames


class Target(Protocol):
    """A term of the teacher, without gradient."""

    def divergence(self, student: Term) -> Tensor:
        """Scalar, summed over the batch: how far the student's term is from this one."""
        ...


class Term(Protocol):
    """Something that branches are compared on."""

    def as_target(self) -> Target: ...


@dataclass(frozen=True)
class Posterior:
    """Distributions over the vocabulary, compared by KL(teacher || student) in nats.

    Attributes:
      scores: (..., V), float32: log-probabilities, or logits, which are normalised if they are asked for.
      weights: (...), 0 on padding, or a function that gives them. The teacher's are used: both must be valid alike.
    """

    scores: Tensor
    weights: Tensor | Callable[[], Tensor]
    normalized: bool = True

    @cached_property
    def log_probs(self) -> Tensor:
        """(..., V)."""
        return self.scores if self.normalized else self.scores.log_softmax(dim=-1)

    @classmethod
    def of_frames(cls, log_probs: Tensor, lens: Tensor) -> Posterior:
        """One distribution per frame, (N, T, V); `lens` (N,) says how many of them are valid."""
        return cls(log_probs, valid_frames(lens, log_probs.size(1)).to(log_probs.dtype))

    @torch.no_grad()
    def as_target(self) -> PosteriorTarget:
        log_probs = replace(self, scores=self.scores.detach()).log_probs
        weights = self.weights() if callable(self.weights) else self.weights
        assert self.scores.shape[:-1] == weights.shape, (self.scores.shape, weights.shape)
        weighted_probs = log_probs.exp().mul_(weights[..., None])  # (..., V)
        return PosteriorTarget(weighted_probs, _inner(weighted_probs, log_probs))


@dataclass(frozen=True)
class PosteriorTarget:
    """The teacher's distributions p with weights w: sum w KL(p || q) = sum w p log p - sum w p log q.

    Two inner products, since on a transducer's lattice these tensors are the largest of a pass; like distributions
    give exactly 0.

    Attributes:
      weighted_probs: (..., V), w p.
      negative_entropy: scalar, sum of w p log p.
    """

    weighted_probs: Tensor
    negative_entropy: Tensor

    def divergence(self, student: Posterior) -> Tensor:
        shapes = self.weighted_probs.shape, student.scores.shape
        assert shapes[0] == shapes[1], shapes
        return self.negative_entropy - _inner(self.weighted_probs, student.log_probs)


@dataclass(frozen=True)
class Features:
    """Vectors per frame, compared by the mean squared error or by 1 - cosine of each, summed over valid frames.

    Attributes:
      values: (N, T, C).
      weights: (N, T), 0 on padding.
      metric: "mse" or "cosine".
    """

    values: Tensor
    weights: Tensor
    metric: str = "mse"

    def __post_init__(self) -> None:
        assert self.metric in ("mse", "cosine"), self.metric
        assert self.values.shape[:-1] == self.weights.shape, (self.values.shape, self.weights.shape)

    def as_target(self) -> FeaturesTarget:
        return FeaturesTarget(self.values.detach(), self.weights, self.metric)


@dataclass(frozen=True)
class FeaturesTarget:
    """The teacher's vectors."""

    values: Tensor
    weights: Tensor
    metric: str

    def divergence(self, student: Features) -> Tensor:
        assert student.values.shape == self.values.shape, (student.values.shape, self.values.shape)
        if self.metric == "mse":
            per_frame = (student.values.float() - self.values.float()).square().mean(dim=-1)  # (N, T)
        else:
            per_frame = 1.0 - F.cosine_similarity(student.values.float(), self.values.float(), dim=-1)  # (N, T)
        return _inner(per_frame, self.weights.to(per_frame.dtype))


def as_targets(terms: Mapping[str, Term]) -> dict[str, Target]:
    """The teacher's terms as what the other branches are drawn to."""
    return {name: term.as_target() for name, term in terms.items()}


def divergence(targets: Mapping[str, Target], terms: Mapping[str, Term], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum over all terms, each summed over the batch; `weights` by name, 1 where it has none."""
    assert list(targets) == list(terms), (list(targets), list(terms))
    found = [target.divergence(terms[name]) for name, target in targets.items()]
    return torch.stack([weights.get(name, 1.0) * value for name, value in zip(targets, found, strict=True)]).sum()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))
