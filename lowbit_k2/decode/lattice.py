"""Lattices by k2: pruned beam search of network output against a graph, and the best path of each.

Scores: a path of the lattice costs the log-probabilities of its frames plus `lm_scale` times the graph's scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    search_beam: float = 20.0
    output_beam: float = 8.0
    min_active_states: int = 30
    max_active_states: int = 10000
    lm_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.search_beam <= 0 or self.output_beam <= 0:
            raise UserError("--search-beam and --output-beam must be positive")
        if not 0 <= self.min_active_states < self.max_active_states:
            raise UserError("--min-active-states must be at least 0 and less than --max-active-states")
        if self.lm_scale < 0:
            raise UserError("--lm-scale must not be negative")

    def widened(self, factor: float = RETRY_FACTOR) -> SearchConfig:
        """The same search with wider beams."""
        return SearchConfig(
            self.search_beam * factor,
            self.output_beam * factor,
            int(self.min_active_states * factor),
            int(self.max_active_states * factor),
            self.lm_scale,
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
    return [labels if found else None for labels, found in zip(_outputs(best), _has_arcs(best), strict=True)]


def _has_arcs(fsas: k2.Fsa) -> list[bool]:
    """Which FSAs of a vector have arcs."""
    shape = fsas.arcs.shape()
    arcs_before = shape.row_splits(2)[shape.row_splits(1).long()]  # (N + 1,)
    return (arcs_before.diff() > 0).tolist()


def _outputs(best: k2.Fsa) -> list[list[int]]:
    """Positive output labels along linear FSAs, in order (0 is epsilon, -1 ends)."""
    k2 = require_k2()
    arcs_to_fsa = best.arcs.shape().remove_axis(1)  # axes: fsa, arc
    if isinstance(best.aux_labels, k2.RaggedTensor):
        labels = k2.RaggedTensor(arcs_to_fsa.compose(best.aux_labels.shape), best.aux_labels.values).remove_axis(1)
    else:
        labels = k2.RaggedTensor(arcs_to_fsa, best.aux_labels)
    return labels.remove_values_leq(0).tolist()


def decode_lattice(
    log_probs: Tensor, lens: Tensor, graph: k2.Fsa, config: SearchConfig
) -> tuple[list[list[int]], Sequence[int]]:
    """Best output labels of a batch; where no path survives the beam, the search is repeated with wider beams.

    Args:
      log_probs: (N, T, V) log-probabilities.
      lens: (N,) valid frames; utterances without a frame have no path.
      graph: arc-sorted, on the device of `log_probs`, scores scaled already.

    Returns:
      N lists of labels, and the indexes of the utterances without any path, whose list is empty.
    """
    results: list[list[int]] = [[] for _ in range(len(lens))]
    left = torch.nonzero(lens.cpu() >= 1).flatten()
    failed = torch.nonzero(lens.cpu() < 1).flatten().tolist()
    for search in (config, config.widened()):
        if len(left) == 0:
            break
        rows = left.to(log_probs.device)
        labels = one_best(make_lattice(log_probs[rows], lens[left.to(lens.device)], graph, search))
        for n, found in zip(left.tolist(), labels, strict=True):
            results[n] = found or []
        left = left[torch.tensor([found is None for found in labels])]
    return results, sorted(failed + left.tolist())
