"""The score of all paths through a graph, as dense matrix products over its states.

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

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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

    def to(self, device: torch.device) -> StateGraph:
        return StateGraph(*(t.to(device) for t in (self.transitions, self.initial, self.final, self.labels)))

    def leaky(self, leak: float) -> StateGraph:
        """Paths may jump from any state to what follows a beginning; and they may end anywhere, if `leak` is over 0."""
        if not leak:
            return self
        jumps = leak * self.initial.expand(self.num_states, -1)
        return StateGraph(self.transitions + jumps, self.initial, torch.ones_like(self.final), self.labels)


def log_total(outputs: Tensor, lens: Tensor, graph: StateGraph) -> Tensor:
    """log Z of each utterance, (N,) float64; -inf where no path is as long as the utterance.

    Args:
      outputs: (N, T, P), logits or log-probabilities; their gradient is that of log Z.
      lens: (N,), at least 1; frames behind them do not count.
    """
    assert outputs.dim() == 3 and lens.shape == outputs.shape[:1], (outputs.shape, lens.shape)
    return _LogTotal.apply(outputs, lens.to(outputs.device), graph.to(outputs.device))


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
        possible = torch.isfinite(last.log()) & (last > 0)
        beta = graph.final.expand(size, -1)  # (N, S)
        result = torch.zeros(size, num_frames, ctx.num_classes, dtype=torch.float64, device=x.device)
        backwards = graph.transitions.t()
        for t in reversed(range(num_frames)):
            occupied = alphas[t] * beta  # (N, S)
            total = occupied.sum(dim=1, keepdim=True).clamp(min=1e-300)
            used = (alive[t] & possible).to(total.dtype)[:, None]
            result[:, t] = (occupied / total * used) @ onehot
            before = (x[t] * beta) @ backwards
            before = before / before.sum(dim=1, keepdim=True).clamp(min=1e-300)
            beta = torch.where(alive[t][:, None], before, beta)
        return (result * grad.double()[:, None, None]).to(ctx.dtype), None, None
