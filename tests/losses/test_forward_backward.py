"""Dense forward-backward against all paths added up one by one, autograd of the plain formula, and k2."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lowbit_k2.graphs.unit_graphs import FrameGraph
from lowbit_k2.losses.forward_backward import GraphBatch, StateGraph, log_total, total_and_posteriors

GENERATOR = torch.Generator().manual_seed(2)


def random_graph(num_states: int, num_classes: int, seed: int = 0, density: float = 0.6) -> StateGraph:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        values = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return values * (torch.rand(*shape, generator=generator) < density)

    labels = torch.randint(num_classes, (num_states,), generator=generator)
    return StateGraph(draw(num_states, num_states), draw(num_states) + 0.01, draw(num_states) + 0.01, labels)


def all_paths(outputs: Tensor, graph: StateGraph) -> float:
    """log of the sum over every sequence of states; outputs (T, P)."""
    total = 0.0
    for path in itertools.product(range(graph.num_states), repeat=len(outputs)):
        weight = float(graph.initial[path[0]] * graph.final[path[-1]])
        for a, b in itertools.pairwise(path):
            weight *= float(graph.transitions[a, b])
        total += weight * math.exp(sum(float(outputs[t, graph.labels[s]]) for t, s in enumerate(path)))
    return math.log(total)


def in_the_log_domain(outputs: Tensor, lens: Tensor, graph: StateGraph) -> Tensor:
    """The same recursion by logsumexp, for autograd."""
    scores, log = [], graph.transitions.log()
    for rows, length in zip(outputs.double(), lens, strict=True):
        alpha = graph.initial.log() + rows[0, graph.labels]
        for row in rows[1:length]:
            alpha = torch.logsumexp(alpha[:, None] + log, dim=0) + row[graph.labels]
        scores.append(torch.logsumexp(alpha + graph.final.log(), dim=0))
    return torch.stack(scores)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_all_paths_are_added_up(seed: int, leak: float) -> None:
    graph = random_graph(3, 4, seed).leaky(leak)
    outputs = 3 * torch.randn(2, 5, 4, generator=GENERATOR)
    found = log_total(outputs, torch.tensor([5, 3]), graph)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([all_paths(outputs[0], graph), all_paths(outputs[1, :3], graph)], rel=1e-9)


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_values_and_gradients_are_those_of_the_plain_recursion(leak: float) -> None:
    graph = random_graph(30, 9).leaky(leak)
    lens = torch.tensor([40, 1, 23])
    outputs = (4 * torch.randn(3, 40, 9, generator=GENERATOR)).requires_grad_()
    expected_in = outputs.detach().clone().requires_grad_()
    found, expected = log_total(outputs, lens, graph), in_the_log_domain(expected_in, lens, graph)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(outputs.grad, expected_in.grad, rtol=1e-5, atol=1e-6)
    posteriors = outputs.grad / weights[:, None, None]
    for n, length in enumerate(lens):
        torch.testing.assert_close(posteriors[n, :length].sum(dim=1).float(), torch.ones(int(length)))
        assert not posteriors[n, length:].any()


def test_very_long_and_very_sure_input_neither_overflows_nor_vanishes() -> None:
    graph = random_graph(20, 5)
    for factor in (1.0, 100.0):
        outputs = (factor * torch.randn(1, 3000, 5, generator=GENERATOR)).requires_grad_()
        total = log_total(outputs, torch.tensor([3000]), graph)
        total.sum().backward()
        assert bool(torch.isfinite(total).all()) and bool(torch.isfinite(outputs.grad).all())
        torch.testing.assert_close(outputs.grad.sum(dim=2), torch.ones(1, 3000), rtol=1e-4, atol=1e-4)


def test_no_path_is_minus_infinity_without_gradient() -> None:
    """A graph that only paths of two frames go through."""
    transitions = torch.zeros(2, 2, dtype=torch.float64)
    transitions[0, 1] = 1.0
    graph = StateGraph(
        transitions, torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double(), torch.arange(2)
    )
    outputs = torch.randn(3, 4, 2, generator=GENERATOR, requires_grad=True)
    total = log_total(outputs, torch.tensor([2, 4, 1]), graph)
    assert torch.isfinite(total).tolist() == [True, False, False] and total[1] == total[2] == -math.inf
    total[0].backward()
    assert bool(torch.isfinite(outputs.grad).all()) and not outputs.grad[1:].any()


def k2_total(outputs: Tensor, lens: Tensor, graph: StateGraph) -> Tensor:
    import k2

    size = graph.num_states
    arcs = [(0, s + 1, graph.labels[s], graph.initial[s]) for s in range(size)]
    arcs += [(a + 1, b + 1, graph.labels[b], graph.transitions[a, b]) for a in range(size) for b in range(size)]
    arcs += [(s + 1, size + 1, -1, graph.final[s]) for s in range(size)]
    text = (
        "".join(
            f"{a} {b} {int(p)} {math.log(w):.9f}\n" for a, b, p, w in sorted(arcs, key=lambda arc: arc[:2]) if w > 0
        )
        + f"{size + 1}\n"
    )
    fsa = k2.Fsa.from_str(text)
    order = sorted(range(len(lens)), key=lambda n: -int(lens[n]))
    segments = torch.tensor([[n, 0, int(lens[n])] for n in order], dtype=torch.int32)
    dense = k2.DenseFsaVec(outputs, segments)
    lattice = k2.intersect_dense(k2.create_fsa_vec([fsa] * len(lens)), dense, output_beam=1e4)
    scores = lattice.get_tot_scores(log_semiring=True, use_double_scores=True)
    return torch.stack([scores[order.index(n)] for n in range(len(lens))])


@pytest.mark.k2
def test_k2_agrees() -> None:
    graph, lens = random_graph(12, 6), torch.tensor([15, 9])
    outputs = torch.randn(2, 15, 6, generator=GENERATOR).log_softmax(-1).requires_grad_()
    theirs = outputs.detach().clone().requires_grad_()
    found, expected = log_total(outputs, lens, graph), k2_total(theirs, lens, graph)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(outputs.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def as_frame_graph(graph: StateGraph) -> FrameGraph:
    size = range(graph.num_states)
    arcs = [(a, b, math.log(w)) for a in size for b in size if (w := float(graph.transitions[a, b])) > 0]
    ends = [tuple((s, math.log(float(values[s]))) for s in size) for values in (graph.initial, graph.final)]
    return FrameGraph(tuple(graph.labels.tolist()), *ends, tuple(arcs))


def test_a_graph_for_each_utterance() -> None:
    """Each gives what it gives alone, by the dense recursion; impossible ones harm nobody."""
    graphs = [random_graph(n, 7, seed=n, density=0.4) for n in (3, 11, 6)]
    batch = GraphBatch.of([*(as_frame_graph(graph) for graph in graphs), FrameGraph((), (), (), ())])
    lens = torch.tensor([25, 9, 1, 8])
    outputs = (3 * torch.randn(4, 25, 7, generator=GENERATOR)).requires_grad_()
    found = log_total(outputs, lens, batch)
    assert found[3] == -math.inf
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (found[:3] * weights).sum().backward()
    for n, graph in enumerate(graphs):
        assert torch.equal(StateGraph.of(as_frame_graph(graph)).labels, graph.labels)
        alone = outputs.detach()[n : n + 1].clone().requires_grad_()
        total = log_total(alone, lens[n : n + 1], StateGraph.of(as_frame_graph(graph)))
        torch.testing.assert_close(found[n : n + 1], total, rtol=1e-10, atol=1e-10)
        (total * weights[n]).sum().backward()
        torch.testing.assert_close(outputs.grad[n : n + 1], alone.grad, rtol=1e-5, atol=1e-6)
    assert not outputs.grad[3].any()


def test_posteriors_are_the_gradient_for_both_kinds_of_graphs() -> None:
    graph = random_graph(6, 5)
    outputs = (2 * torch.randn(3, 8, 5, generator=GENERATOR)).requires_grad_()
    lens = torch.tensor([8, 5, 1])
    for graphs in (graph, GraphBatch.of([as_frame_graph(graph)] * 3)):
        totals, posteriors = total_and_posteriors(outputs, lens, graphs)
        (gradient,) = torch.autograd.grad(totals.sum(), outputs)
        assert not posteriors.requires_grad and posteriors.dtype == torch.float64
        torch.testing.assert_close(gradient.double(), posteriors, rtol=1e-6, atol=1e-7)
        with torch.no_grad():
            without = log_total(outputs, lens, graphs)
        torch.testing.assert_close(without, totals.detach(), rtol=0, atol=0)
