"""Lattices by k2: pruned beam search of network output against a graph, and the best path of each.

Scores: a path of the lattice costs the log-probabilities of its frames plus `lm_scale` times the graph's scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowbit_k2.core.config import LARGEST_INT, Config, ConfigError, option
from lowbit_k2.decode.hypothesis import Hypothesis, Nbest
from lowbit_k2.k2_compat import require_k2

if TYPE_CHECKING:
    import k2

SAME_SCORE = 1e-3  # scores of paths that differ by less, in nats, may do so by rounding
RETRY_FACTOR = 4.0  # how much wider the beams are for an utterance that no path survived
WIDEST_BEAM, LARGEST_SCALE = 10_000.0, 1000.0  # k2 orders scores as integers, which ends where they are in the billions


@dataclass(frozen=True)
class SearchConfig(Config):
    """Beams of the search; defaults are icefall's."""

    search_beam: float = option(
        20.0, "log-probability below a frame's best state at which states are dropped", above=0, high=WIDEST_BEAM
    )
    output_beam: float = option(
        8.0, "CTC lattices: log-probability below the best path at which arcs are cut", above=0, high=WIDEST_BEAM
    )
    min_active_states: int = option(30, "CTC lattices: states kept per frame at least", low=0)
    max_active_states: int = option(10000, "CTC lattices: states kept per frame at most", low=1)
    lm_scale: float = option(
        1.0, flag="", low=0, high=LARGEST_SCALE
    )  # factor on the graph's scores, 1 being the language model as it is
    lodr_scale: float = option(0.0, flag="", low=0, high=LARGEST_SCALE)  # of what `lodr_lm` takes off a token LM
    max_states: int = option(64, "transducer lattices: (graph state, context) pairs kept per frame at most", low=2)
    max_contexts: int = option(8, "transducer lattices: contexts kept per frame at most", low=1)
    num_paths: int = option(200, "paths drawn for an n-best list, before equal ones are merged", low=1, high=100000)
    max_arcs: int = option(
        50000, "arcs of a lattice that is rescored or that paths are drawn from; more are pruned", low=1
    )
    nbest_scale: float = option(
        0.5, "factor on scores while paths are drawn; smaller: more different ones", above=0, high=LARGEST_SCALE
    )
    beam_size: int = option(4, "hypotheses of modified_beam_search", low=1, high=10000)
    blank_penalty: float = option(0.0, "off the blank's logit in transducer search, for models that delete many")

    def check(self) -> None:
        if self.min_active_states >= self.max_active_states:
            raise ConfigError("min_active_states", "must be less than max_active_states")

    def widened(self, factor: float = RETRY_FACTOR) -> SearchConfig:
        """The same search with wider beams."""
        counts = ("min_active_states", "max_active_states", "max_states", "max_contexts")
        beams = {name: min(getattr(self, name) * factor, WIDEST_BEAM) for name in ("search_beam", "output_beam")}
        return replace(self, **beams, **{name: min(int(getattr(self, name) * factor), LARGEST_INT) for name in counts})


def scale_graph(graph: k2.Fsa, lm_scale: float) -> k2.Fsa:
    """A copy of a graph with its scores multiplied by `lm_scale`."""
    scaled = graph.clone()
    scaled.scores = graph.scores * lm_scale
    return scaled


def make_lattice(log_probs: Tensor, lens: Tensor, graph: k2.Fsa, config: SearchConfig) -> k2.Fsa:
    """Search a batch.

    Args:
      log_probs: (N, T, V) float32 log-probabilities; V must exceed every label of the graph.
      lens: (N,) valid frames, each at least 1 (k2 1.23.4 accepts no empty segment).
      graph: an arc-sorted graph on the device of `log_probs`, its scores scaled already (`scale_graph`).

    Returns:
      An FsaVec of N lattices in the order of the batch; one without arcs where no path survived.
    """
    k2 = require_k2()
    num_classes = log_probs.size(2)
    assert int(graph.labels.max()) < num_classes, (int(graph.labels.max()), num_classes)
    assert bool((lens >= 1).all()), lens
    order = torch.argsort(lens.cpu(), descending=True, stable=True)
    segments = torch.stack([order, torch.zeros_like(order), lens.cpu()[order]], dim=1).to(torch.int32)  # (N, 3)
    lattice = k2.intersect_dense_pruned(
        graph,
        k2.DenseFsaVec(log_probs.float(), segments),
        search_beam=config.search_beam,
        output_beam=config.output_beam,
        min_active_states=config.min_active_states,
        max_active_states=config.max_active_states,
    )
    back = torch.argsort(order).to(device=log_probs.device, dtype=torch.int32)
    return k2.index_fsa(lattice, back)


def one_best(lattice: k2.Fsa) -> list[Nbest]:
    """The best path of each lattice: its output labels (words, or tokens) and scores; nothing where it is empty.

    Args:
      lattice: `lm_scores`, where it has them, are the language model's part of its scores.
    """
    k2 = require_k2()
    best = k2.shortest_path(lattice, use_double_scores=True)
    arcs_to_fsa = best.arcs.shape().remove_axis(1)  # axes: fsa, arc
    if isinstance(best.aux_labels, k2.RaggedTensor):
        labels = k2.RaggedTensor(arcs_to_fsa.compose(best.aux_labels.shape), best.aux_labels.values).remove_axis(1)
    else:
        labels = k2.RaggedTensor(arcs_to_fsa, best.aux_labels)
    found = labels.remove_values_leq(0).tolist()  # 0 is epsilon, -1 ends
    lm_scores = getattr(best, "lm_scores", torch.zeros_like(best.scores))
    owner = arcs_to_fsa.row_ids(1).long()  # FSA of each arc
    acoustic, lm = (
        torch.zeros(len(found), dtype=torch.float64, device=owner.device).index_add_(0, owner, values.double()).tolist()
        for values in (best.scores - lm_scores, lm_scores)
    )
    paths = zip(found, acoustic, lm, has_arcs(best), strict=True)
    return [[Hypothesis(tuple(labels), a, b)] if exists else [] for labels, a, b, exists in paths]


def first_arcs(fsas: k2.Fsa) -> Tensor:
    """Index of the first arc of each FSA of a vector, and the number of arcs.

    Returns:
      (N + 1,).
    """
    shape = fsas.arcs.shape()
    return shape.row_splits(2)[shape.row_splits(1).long()]


def has_arcs(fsas: k2.Fsa) -> list[bool]:
    """Which FSAs of a vector have arcs."""
    return (first_arcs(fsas).diff() > 0).tolist()


def limit_arcs(lattice: k2.Fsa, max_arcs: int) -> k2.Fsa:
    """Prune lattices that are too large to be worked on, as those of a network that knows little are.

    The beam is narrowed until the arcs are few enough: an arc goes before another one if the best path through it is
    worse, and the best path stays.

    Args:
      max_arcs: arcs of an utterance's lattice at most; more only if best paths that are equally good have them.

    Returns:
      The lattice itself if it is small enough.
    """
    k2 = require_k2()
    starts = first_arcs(lattice)  # (N + 1,)
    if bool((starts.diff() <= max_arcs).all()):
        return lattice
    below_best = lattice.get_arc_post(use_double_scores=True, log_semiring=False)  # (arcs,), at most 0
    pruned = []
    for n, (start, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        fsa, own = lattice[n], below_best[start:end]
        if len(own) > max_arcs:
            cut = own.topk(max_arcs + 1).values[-1] + SAME_SCORE  # arcs that are equally good go together
            fsa = take_arcs(fsa, torch.nonzero(own > cut.clamp(max=-SAME_SCORE)).flatten())
        pruned.append(fsa)
    return k2.create_fsa_vec(pruned)


def take_arcs(fsa: k2.Fsa, arcs: Tensor) -> k2.Fsa:
    """One FSA with some of its arcs, in ascending order, and all of their attributes."""
    k2 = require_k2()
    taken = k2.Fsa(fsa.arcs.values()[arcs])
    for name, values in fsa.named_tensor_attr(include_scores=False):
        ragged = isinstance(values, k2.RaggedTensor)
        setattr(taken, name, values.index(arcs.int(), axis=0)[0] if ragged else values[arcs])
    return k2.connect(taken)


def search_with_retry(
    lens: Tensor, config: SearchConfig, search: Callable[[Tensor, SearchConfig], list[Nbest]]
) -> list[Nbest]:
    """Hypotheses of a batch; where no path survives the beams, the search is repeated with wider ones.

    Args:
      lens: (N,) valid frames; utterances without a frame have no path.
      search: gets the utterances to search, (M,) indexes on the CPU, and the beams.

    Returns:
      N lists of hypotheses, empty for utterances without any path.
    """
    results: list[Nbest] = [[] for _ in range(len(lens))]
    left = torch.nonzero(lens.cpu() >= 1).flatten()
    for beams in (config, config.widened()):
        if len(left) == 0:
            break
        for n, found in zip(left.tolist(), search(left, beams), strict=True):
            results[n] = found
        left = left[torch.tensor([not results[n] for n in left.tolist()])]
    return results
