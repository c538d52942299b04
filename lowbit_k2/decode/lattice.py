"""Lattices by k2: pruned beam search of network output against a graph, and the best path of each.

Scores: a path of the lattice costs the log-probabilities of its frames plus `lm_scale` times the graph's scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowbit_k2.errors import UserError
from lowbit_k2.k2_compat import require_k2

if TYPE_CHECKING:
    import k2

RETRY_FACTOR = 4.0  # how much wider the beams are for an utterance that no path survived


@dataclass(frozen=True)
class SearchConfig:
    """Beams of the search; defaults are icefall's.

    Attributes:
      search_beam: log-probability below the best state of a frame at which states are dropped.
      output_beam: log-probability below the best path at which arcs are cut from the lattice.
      min_active_states: states kept per frame whatever the beam says.
      max_active_states: states kept per frame at most.
      lm_scale: factor on the graph's scores, 1 being the language model as it is.
      max_states: transducer lattices: (graph state, context) pairs kept per frame at most.
      max_contexts: transducer lattices: contexts kept per frame at most, each of which costs a pass of the joiner.
      num_paths: paths drawn from a lattice for an n-best list, before equal ones are merged.
      nbest_scale: factor on the lattice's scores while paths are drawn; a smaller one draws more different paths.
      beam_size: hypotheses kept per utterance in modified beam search.
      blank_penalty: subtracted from the blank's logit in transducer search; more tokens where a model deletes many.
    """

    search_beam: float = 20.0
    output_beam: float = 8.0
    min_active_states: int = 30
    max_active_states: int = 10000
    lm_scale: float = 1.0
    max_states: int = 64
    max_contexts: int = 8
    num_paths: int = 200
    nbest_scale: float = 0.5
    beam_size: int = 4
    blank_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.search_beam <= 0 or self.output_beam <= 0:
            raise UserError("--search-beam and --output-beam must be positive")
        if not 0 <= self.min_active_states < self.max_active_states:
            raise UserError("--min-active-states must be at least 0 and less than --max-active-states")
        if self.lm_scale < 0:
            raise UserError("--lm-scale must not be negative")
        for name, least in (("max_states", 2), ("max_contexts", 1), ("num_paths", 1), ("beam_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}")
        if self.nbest_scale <= 0:
            raise UserError("--nbest-scale must be positive")

    def widened(self, factor: float = RETRY_FACTOR) -> SearchConfig:
        """The same search with wider beams."""
        counts = ("min_active_states", "max_active_states", "max_states", "max_contexts")
        return replace(
            self,
            search_beam=self.search_beam * factor,
            output_beam=self.output_beam * factor,
            **{name: int(getattr(self, name) * factor) for name in counts},
        )


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


def one_best(lattice: k2.Fsa) -> list[list[int] | None]:
    """Output labels (words, or tokens of the CTC topology) on the best path of each lattice; None where it is empty."""
    k2 = require_k2()
    best = k2.shortest_path(lattice, use_double_scores=True)
    arcs_to_fsa = best.arcs.shape().remove_axis(1)  # axes: fsa, arc
    if isinstance(best.aux_labels, k2.RaggedTensor):
        labels = k2.RaggedTensor(arcs_to_fsa.compose(best.aux_labels.shape), best.aux_labels.values).remove_axis(1)
    else:
        labels = k2.RaggedTensor(arcs_to_fsa, best.aux_labels)
    found = labels.remove_values_leq(0).tolist()  # 0 is epsilon, -1 ends
    return [labels if exists else None for labels, exists in zip(found, has_arcs(best), strict=True)]


def has_arcs(fsas: k2.Fsa) -> list[bool]:
    """Which FSAs of a vector have arcs."""
    shape = fsas.arcs.shape()
    arcs_before = shape.row_splits(2)[shape.row_splits(1).long()]  # (N + 1,)
    return (arcs_before.diff() > 0).tolist()


Labels = list[list[int] | None]  # of each utterance of a batch; None where no path survived


def search_with_retry(
    lens: Tensor, config: SearchConfig, search: Callable[[Tensor, SearchConfig], Labels]
) -> tuple[list[list[int]], list[int]]:
    """Output labels of a batch; where no path survives the beams, the search is repeated with wider ones.

    Args:
      lens: (N,) valid frames; utterances without a frame have no path.
      search: gets the utterances to search, (M,) indexes on the CPU, and the beams.

    Returns:
      N lists of labels, and the indexes of the utterances without any path, whose list is empty.
    """
    results: list[list[int]] = [[] for _ in range(len(lens))]
    left = torch.nonzero(lens.cpu() >= 1).flatten()
    failed = torch.nonzero(lens.cpu() < 1).flatten().tolist()
    for beams in (config, config.widened()):
        if len(left) == 0:
            break
        labels = search(left, beams)
        for n, found in zip(left.tolist(), labels, strict=True):
            results[n] = found or []
        left = left[torch.tensor([found is None for found in labels])]
    return results, sorted(failed + left.tolist())
