"""The score of all paths through graphs: one for all utterances, by dense matrix products, or one for each, by arcs.

A state stands for one class of the network's output; a path visits a state per frame. With A the transition weights, pi
those of the first state, f of the last one, and x_t the exponentials of a frame's outputs,

    alpha_1 = pi * x_1,    alpha_t = (alpha_{t-1} A) * x_t,    Z = alpha_T f

where x_t(s) is the entry of the class that state s stands for. For the few hundred states of a phone n-gram this takes
milliseconds, where lattices have millions of arcs (k2's `intersect_dense`, the reference in tests). alpha is scaled at
each frame, in float64. The gradient of log Z is closed: d log Z / d output_t(p) is the posterior of the states of p.

A leaky HMM (Povey et al., "Purely sequence-trained neural networks for ASR based on lattice-free MMI", 2016) lets every
path jump to a new beginning before each frame, at a small price: A + leak * 1 (pi A).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowbit_k2.graphs.unit_graphs import FrameGraph

TINY = 1e-300  # where all weight is gone, 0 / 0: such an utterance has no path, and no gradient


class Graphs(Protocol):
    """What the recursion asks of graphs; `states` is (N, S) for one graph of all utterances, (S,) for one of each."""

    initial: Tensor  # states, or what is expanded to it
    final: Tensor

    def to(self, device: torch.device) -> Graphs: ...

    def emitted(self, x: Tensor) -> Tensor:
        """x (N, T, P) -> (T, states): of each state's class."""
        ...

    def forward(self, values: Tensor) -> Tensor:
        """Carried along the arcs, and added up where they arrive."""
        ...

    def backward(self, values: Tensor) -> Tensor:
        """The same against the arcs."""
        ...

    def sums(self, values: Tensor) -> Tensor:
        """states -> (N,)."""
        ...

    def spread(self, values: Tensor) -> Tensor:
        """(N,) -> what multiplies states."""
        ...

    def by_class(self, values: Tensor, num_classes: int) -> Tensor:
        """states -> (N, P), those of one class added up."""
        ...


@dataclass(frozen=True)
class StateGraph:
    """A graph for all utterances, whose states have labels.

    Attributes:
      transitions: (S, S) float64, weight from state (row) to state (column).
      initial, final: (S,) float64.
      labels: (S,) int64, the class of each state.
    """

    transitions: Tensor
    initial: Tensor
    final: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        size = len(self.labels)
        shapes = self.transitions.shape, self.initial.shape, self.final.shape
        assert shapes == ((size, size), (size,), (size,)), (shapes, size)

    @property
    def num_states(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, graph: FrameGraph) -> StateGraph:
        """From states and arcs; arcs between the same two states add up."""
        size = len(graph.labels)
        transitions = torch.zeros(size, size, dtype=torch.float64)
        if graph.arcs:
            sources, targets, weights = zip(*graph.arcs, strict=True)
            places = torch.tensor(sources), torch.tensor(targets)
            transitions.index_put_(places, torch.tensor(weights, dtype=torch.float64).exp(), accumulate=True)
        initial, final = (_weights(pairs, size) for pairs in (graph.initial, graph.final))
        return cls(transitions, initial, final, torch.tensor(graph.labels))

    def to(self, device: torch.device) -> StateGraph:
        return StateGraph(*(t.to(device) for t in (self.transitions, self.initial, self.final, self.labels)))

    def leaky(self, leak: float) -> StateGraph:
        """Paths may jump from any state to what follows a beginning; and they may end anywhere, if `leak` is over 0."""
        if not leak:
            return self
        jumps = leak * self.initial.expand(self.num_states, -1)
        return StateGraph(self.transitions + jumps, self.initial, torch.ones_like(self.final), self.labels)

    def emitted(self, x: Tensor) -> Tensor:
        return x[..., self.labels].transpose(0, 1)  # (T, N, S)

    def forward(self, values: Tensor) -> Tensor:
        return values @ self.transitions

    def backward(self, values: Tensor) -> Tensor:
        return values @ self.transitions.t()

    def sums(self, values: Tensor) -> Tensor:
        return values.sum(dim=1)

    def spread(self, values: Tensor) -> Tensor:
        return values[:, None]

    def by_class(self, values: Tensor, num_classes: int) -> Tensor:
        found = torch.zeros(len(values), num_classes, dtype=values.dtype, device=values.device)
        return found.index_add_(1, self.labels, values)


@dataclass(frozen=True)
class GraphBatch:
    """A graph for each utterance, their states numbered through.

    Attributes:
      sources, targets, weights: (A,) of the arcs; weights float64.
      initial, final: (S,) float64; labels, owners: (S,), the class and the utterance of each state.
      size: utterances.
    """

    sources: Tensor
    targets: Tensor
    weights: Tensor
    initial: Tensor
    final: Tensor
    labels: Tensor
    owners: Tensor
    size: int

    @classmethod
    def of(cls, graphs: Sequence[FrameGraph]) -> GraphBatch:
        """Graphs may be empty: nothing is then accepted."""
        sizes = [len(graph.labels) for graph in graphs]
        starts = [sum(sizes[:n]) for n in range(len(sizes))]
        numbered = list(zip(starts, graphs, strict=True))
        arcs = [(a + s, b + s, w) for s, graph in numbered for a, b, w in graph.arcs]
        sources, targets, weights = zip(*arcs, strict=True) if arcs else ((), (), ())
        initial = [(n + s, w) for s, graph in numbered for n, w in graph.initial]
        final = [(n + s, w) for s, graph in numbered for n, w in graph.final]
        return cls(
            torch.tensor(sources, dtype=torch.int64),
            torch.tensor(targets, dtype=torch.int64),
            torch.tensor(weights, dtype=torch.float64).exp(),
            _weights(initial, sum(sizes)),
            _weights(final, sum(sizes)),
            torch.tensor([label for graph in graphs for label in graph.labels], dtype=torch.int64),
            torch.repeat_interleave(torch.arange(len(graphs)), torch.tensor(sizes, dtype=torch.int64)),
            len(graphs),
        )

    def to(self, device: torch.device) -> GraphBatch:
        moved = (getattr(self, f.name).to(device) for f in fields(self) if f.name != "size")
        return GraphBatch(*moved, self.size)

    def emitted(self, x: Tensor) -> Tensor:
        return x[self.owners, :, self.labels].t()  # (T, S)

    def forward(self, values: Tensor) -> Tensor:
        return torch.zeros_like(values).index_add_(0, self.targets, values[self.sources] * self.weights)

    def backward(self, values: Tensor) -> Tensor:
        return torch.zeros_like(values).index_add_(0, self.sources, values[self.targets] * self.weights)

    def sums(self, values: Tensor) -> Tensor:
        return torch.zeros(self.size, dtype=values.dtype, device=values.device).index_add_(0, self.owners, values)

    def spread(self, values: Tensor) -> Tensor:
        return values[self.owners]

    def by_class(self, values: Tensor, num_classes: int) -> Tensor:
        found = torch.zeros(self.size * num_classes, dtype=values.dtype, device=values.device)
        places = self.owners * num_classes + self.labels  # (S,) in (N, P)
        return found.index_add_(0, places, values).view(self.size, num_classes)


def _weights(pairs: Iterable[tuple[int, float]], size: int) -> Tensor:
    values = torch.zeros(size, dtype=torch.float64)
    for state, weight in pairs:
        values[state] += math.exp(weight)
    return values


def log_total(outputs: Tensor, lens: Tensor, graphs: Graphs) -> Tensor:
    """log Z of each utterance, (N,) float64; -inf where no path is as long as the utterance.

    Args:
      outputs: (N, T, P), logits or log-probabilities; their gradient is that of log Z.
      lens: (N,), at least 1; frames behind them do not count.
    """
    if not (outputs.requires_grad and torch.is_grad_enabled()):
        return _Recursion(outputs, lens, graphs).totals()
    return total_and_posteriors(outputs, lens, graphs)[0]


def total_and_posteriors(outputs: Tensor, lens: Tensor, graphs: Graphs) -> tuple[Tensor, Tensor]:
    """log Z, and how likely paths are to be in a class at a frame: (N,) and, without gradient, (N, T, P) float64.

    The posteriors of a frame add up to 1, but to 0 behind an utterance's end and where it has no path.
    """
    recursion = _Recursion(outputs, lens, graphs)
    totals = recursion.totals()
    posteriors = recursion.posteriors()
    return _WithGradient.apply(outputs, totals, posteriors), posteriors


class _Recursion:
    """alpha and beta over the frames of a batch."""

    @torch.no_grad()
    def __init__(self, outputs: Tensor, lens: Tensor, graphs: Graphs) -> None:
        assert outputs.dim() == 3 and lens.shape == outputs.shape[:1], (outputs.shape, lens.shape)
        lens, self.graphs = lens.to(outputs.device), graphs.to(outputs.device)
        scores = outputs.detach().double()
        self.top = scores.amax(dim=2)  # (N, T)
        self.x = self.graphs.emitted((scores - self.top[..., None]).exp())  # (T, states)
        self.alive = torch.arange(outputs.size(1), device=lens.device)[:, None] < lens  # (T, N)
        self.num_classes = outputs.size(2)

    @torch.no_grad()
    def totals(self) -> Tensor:
        """(N,)."""
        graphs, self.alphas = self.graphs, []
        alpha = graphs.initial.expand_as(self.x[0])
        log_scale = torch.zeros_like(self.top[:, 0])
        for t, (x, alive) in enumerate(zip(self.x, self.alive, strict=True)):
            new = (graphs.forward(alpha) if t else alpha) * x
            scale = torch.where(alive, graphs.sums(new), torch.ones_like(log_scale))  # (N,)
            log_scale = log_scale + scale.log()
            alpha = torch.where(graphs.spread(alive), new / graphs.spread(scale.clamp(min=TINY)), alpha)
            self.alphas.append(alpha)
        self.last = graphs.sums(alpha * graphs.final)
        return log_scale + self.last.log() + (self.top * self.alive.t()).sum(dim=1)

    @torch.no_grad()
    def posteriors(self) -> Tensor:
        """(N, T, P), after `totals`."""
        graphs, found = self.graphs, []
        beta = graphs.final.expand_as(self.x[0])
        for alpha, x, alive in zip(reversed(self.alphas), self.x.flip(0), self.alive.flip(0), strict=True):
            occupied = alpha * beta
            share = (alive & (self.last > 0)) / graphs.sums(occupied).clamp(min=TINY)  # (N,)
            found.append(graphs.by_class(occupied * graphs.spread(share), self.num_classes))
            before = graphs.backward(x * beta)
            before = before / graphs.spread(graphs.sums(before).clamp(min=TINY))
            beta = torch.where(graphs.spread(alive), before, beta)
        return torch.stack(found[::-1], dim=1)


class _WithGradient(torch.autograd.Function):
    """log Z with its gradient, the posteriors."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, totals: Tensor, posteriors: Tensor) -> Tensor:
        ctx.save_for_backward(posteriors)
        ctx.dtype = outputs.dtype
        return totals.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (posteriors,) = ctx.saved_tensors
        return (posteriors * grad.double()[:, None, None]).to(ctx.dtype), None, None
