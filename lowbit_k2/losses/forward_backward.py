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
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowbit_k2.graphs.unit_graphs import FrameGraph


@dataclass(frozen=True)
class StateGraph:
    """A graph whose states have labels.

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


def _weights(pairs: Iterable[tuple[int, float]], size: int) -> Tensor:
    values = torch.zeros(size, dtype=torch.float64)
    for state, weight in pairs:
        values[state] += math.exp(weight)
    return values


def log_total(outputs: Tensor, lens: Tensor, graph: StateGraph) -> Tensor:
    """log Z of each utterance, (N,) float64; -inf where no path is as long as the utterance.

    Args:
      outputs: (N, T, P), logits or log-probabilities; their gradient is that of log Z.
      lens: (N,), at least 1; frames behind them do not count.
    """
    assert outputs.dim() == 3 and lens.shape == outputs.shape[:1], (outputs.shape, lens.shape)
    return _LogTotal.apply(outputs, lens.to(outputs.device), graph.to(outputs.device))


def log_totals(outputs: Tensor, lens: Tensor, graphs: GraphBatch) -> Tensor:
    """The same where each utterance has a graph of its own."""
    assert outputs.dim() == 3 and len(outputs) == len(lens) == graphs.size, (outputs.shape, lens.shape, graphs.size)
    return _LogTotals.apply(outputs, lens.to(outputs.device), graphs.to(outputs.device))


class _LogTotal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, lens: Tensor, graph: StateGraph) -> Tensor:
        scores = outputs.detach().double()
        top = scores.amax(dim=2, keepdim=True)  # (N, T, 1)
        x = (scores - top).exp()[..., graph.labels].transpose(0, 1)  # (T, N, S)
        alive = torch.arange(len(x), device=lens.device)[:, None] < lens  # (T, N)
        alphas, log_scale = [], torch.zeros_like(top[:, 0, 0])
        alpha = graph.initial.expand(x.size(1), -1)  # (N, S)
        for t, (x_t, alive_t) in enumerate(zip(x, alive, strict=True)):
            new = (alpha @ graph.transitions if t else alpha) * x_t
            scale = torch.where(alive_t, new.sum(dim=1), torch.ones_like(log_scale))  # (N,)
            log_scale = log_scale + scale.log()
            # where all weight is gone, 0 / 0: such an utterance has no path, and no gradient
            alpha = torch.where(alive_t[:, None], new / scale.clamp(min=1e-300)[:, None], alpha)
            alphas.append(alpha)
        last = (alpha * graph.final).sum(dim=1)  # (N,)
        ctx.save_for_backward(x, alive, torch.stack(alphas), last)
        ctx.graph, ctx.dtype, ctx.num_classes = graph, outputs.dtype, outputs.size(2)
        return log_scale + last.log() + (top[..., 0] * alive.transpose(0, 1)).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, alive, alphas, last = ctx.saved_tensors  # (T, N, S), (T, N), (T, N, S), (N,)
        graph, (num_frames, size, _) = ctx.graph, x.shape
        onehot = torch.zeros(graph.num_states, ctx.num_classes, dtype=torch.float64, device=x.device)
        onehot[torch.arange(graph.num_states, device=x.device), graph.labels] = 1.0  # (S, P)
        beta = graph.final.expand(size, -1)  # (N, S)
        result = torch.zeros(size, num_frames, ctx.num_classes, dtype=torch.float64, device=x.device)
        backwards = graph.transitions.t()
        for t in reversed(range(num_frames)):
            occupied = alphas[t] * beta  # (N, S)
            total = occupied.sum(dim=1, keepdim=True).clamp(min=1e-300)
            used = (alive[t] & (last > 0)).to(total.dtype)[:, None]
            result[:, t] = (occupied / total * used) @ onehot
            before = (x[t] * beta) @ backwards
            before = before / before.sum(dim=1, keepdim=True).clamp(min=1e-300)
            beta = torch.where(alive[t][:, None], before, beta)
        return (result * grad.double()[:, None, None]).to(ctx.dtype), None, None


class _LogTotals(torch.autograd.Function):
    """alpha and beta are (S,), over the states of all graphs; sums over an utterance's go by `owners`."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, lens: Tensor, graphs: GraphBatch) -> Tensor:
        scores = outputs.detach().double()
        top = scores.amax(dim=2, keepdim=True)  # (N, T, 1)
        x = (scores - top).exp()[graphs.owners, :, graphs.labels].t()  # (T, S)
        alive = torch.arange(len(x), device=lens.device)[:, None] < lens  # (T, N)
        alphas, log_scale = [], torch.zeros_like(top[:, 0, 0])
        alpha = graphs.initial
        for t, (x_t, alive_t) in enumerate(zip(x, alive, strict=True)):
            new = _along(alpha, graphs.sources, graphs.targets, graphs.weights) if t else alpha
            new = new * x_t
            scale = torch.where(alive_t, _by_owner(new, graphs), torch.ones_like(log_scale))  # (N,)
            log_scale = log_scale + scale.log()
            alpha = torch.where(alive_t[graphs.owners], new / scale.clamp(min=1e-300)[graphs.owners], alpha)
            alphas.append(alpha)
        last = _by_owner(alpha * graphs.final, graphs)
        ctx.save_for_backward(x, alive, torch.stack(alphas), last)
        ctx.graphs, ctx.dtype, ctx.num_classes = graphs, outputs.dtype, outputs.size(2)
        return log_scale + last.log() + (top[..., 0] * alive.transpose(0, 1)).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, alive, alphas, last = ctx.saved_tensors  # (T, S), (T, N), (T, S), (N,)
        graphs, num_frames = ctx.graphs, len(x)
        places = graphs.owners * ctx.num_classes + graphs.labels  # (S,) in (N, P)
        beta = graphs.final
        result = torch.zeros(num_frames, graphs.size * ctx.num_classes, dtype=torch.float64, device=x.device)
        for t in reversed(range(num_frames)):
            occupied = alphas[t] * beta
            total = _by_owner(occupied, graphs).clamp(min=1e-300)
            used = (alive[t] & (last > 0)).to(total.dtype)
            result[t].index_add_(0, places, occupied * (used / total)[graphs.owners])
            before = _along(x[t] * beta, graphs.targets, graphs.sources, graphs.weights)
            before = before / _by_owner(before, graphs).clamp(min=1e-300)[graphs.owners]
            beta = torch.where(alive[t][graphs.owners], before, beta)
        by_frame = result.view(num_frames, graphs.size, ctx.num_classes).transpose(0, 1)  # (N, T, P)
        return (by_frame * grad.double()[:, None, None]).to(ctx.dtype), None, None


def _along(values: Tensor, sources: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Values carried along arcs and added up where they arrive, (S,)."""
    return torch.zeros_like(values).index_add_(0, targets, values[sources] * weights)


def _by_owner(values: Tensor, graphs: GraphBatch) -> Tensor:
    """Sums by utterance, (N,)."""
    return torch.zeros(graphs.size, dtype=values.dtype, device=values.device).index_add_(0, graphs.owners, values)
