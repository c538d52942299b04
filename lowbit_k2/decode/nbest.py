"""What can be read off a lattice besides its best path: n-best lists, and scores of another language model.

The score of a word sequence is the log of the sum over all its alignments in the lattice, not its best one's alone:
that is what CTC and the transducer are trained on. Lattices hold words (or tokens) as `aux_labels`; the language model
of the graph, where it has one, is in their scores and in the attribute `lm_scores` too (`keep_lm_scores`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowbit_k2.decode.hypothesis import Hypothesis, Nbest, best_first
from lowbit_k2.decode.lattice import SAME_SCORE, has_arcs, one_best, scale_graph
from lowbit_k2.k2_compat import forget_properties, require_k2

if TYPE_CHECKING:
    import k2

NEVER = -1e30


@dataclass(frozen=True)
class RescoringGrammar:
    """An n-gram that lattices are rescored with.

    Attributes:
      fsa: acceptor over words, as an FsaVec of one, scaled; epsilon loops at its states let a lattice's epsilons pass.
      backoff: label of its back-off arcs.
    """

    fsa: k2.Fsa
    backoff: int


def rescoring_grammar(grammar: k2.Fsa, backoff: int, lm_scale: float, device: str | torch.device) -> RescoringGrammar:
    """Prepare G for rescoring.

    Args:
      grammar: G of `read_grammar`, with `#0` on its back-off arcs.
      backoff: id of `#0`.
    """
    k2 = require_k2()
    acceptor = keep_lm_scores(scale_graph(k2.Fsa(grammar.arcs), lm_scale))
    acceptor = k2.arc_sort(k2.add_epsilon_self_loops(acceptor))
    return RescoringGrammar(k2.create_fsa_vec([acceptor]).to(device), backoff)


def sample_sequences(lattice: k2.Fsa, num_paths: int, scale: float) -> k2.RaggedTensor:
    """Different output sequences along paths that are drawn from each lattice by their probability.

    Args:
      num_paths: how many paths are drawn.
      scale: factor on the scores while they are drawn.

    Returns:
      Axes [lattice][sequence][label].
    """
    k2 = require_k2()
    paths = k2.random_paths(scale_graph(lattice, scale), use_double_scores=True, num_paths=num_paths)
    if isinstance(lattice.aux_labels, k2.RaggedTensor):
        labels = lattice.aux_labels.index(paths).remove_axis(2)  # [lattice][path][arc][label], less the arcs
    else:
        labels = k2.ragged.index(lattice.aux_labels, paths)
    different, _, _ = labels.remove_values_leq(0).unique(need_num_repeats=False, need_new2old_indexes=False)
    return different


def sequence_scores(
    lattice: k2.Fsa, sequences: k2.RaggedTensor, grammar: RescoringGrammar | None = None
) -> tuple[Tensor, Tensor]:
    """Log of the summed probabilities of all alignments of each sequence in its lattice, and the language model.

    An n-gram with back-off arcs accepts a sentence along several paths, and with each of them all alignments are in
    the lattice: the best one counts, as in decoding, and the sum goes over the alignments along it.

    Args:
      sequences: axes [lattice][sequence][label].
      grammar: instead of the language model of the lattice.

    Returns:
      Acoustic and language model scores, (number of sequences,) each, float64.
    """
    k2 = require_k2()
    linear = k2.linear_fsa(sequences.remove_axis(0))
    owner = sequences.shape.row_ids(1)  # lattice of each sequence
    matched = k2.intersect_device(
        k2.arc_sort(k2.invert(lattice)), k2.add_epsilon_self_loops(linear), b_to_a_map=owner, sorted_match_a=True
    )
    matched = k2.top_sort(k2.connect(matched))
    lm_scores = getattr(matched, "lm_scores", torch.zeros_like(matched.scores))
    by_lm, acoustic = matched.clone(), matched.clone()
    by_lm.scores = lm_scores
    on_best = by_lm.get_arc_post(use_double_scores=True, log_semiring=False) > -SAME_SCORE
    acoustic.scores = torch.where(on_best, matched.scores - lm_scores, torch.full_like(lm_scores, NEVER))
    if grammar is not None:
        by_lm = against_grammar(linear, grammar)
    return (
        acoustic.get_tot_scores(use_double_scores=True, log_semiring=True),
        by_lm.get_tot_scores(use_double_scores=True, log_semiring=False),
    )


def against_grammar(fsas: k2.Fsa, grammar: RescoringGrammar) -> k2.Fsa:
    """Compose FSAs over words (0: epsilon) with an n-gram; scores add up.

    Epsilons of the lattice go with the grammar's epsilon loops, back-off arcs of the grammar with loops that are put
    on the lattice's states: two labels, so that no path is found twice and no cycle arises.

    Returns:
      An FsaVec of acceptors, top-sorted, whose labels include the back-off label; `lm_scores` are the grammar's.
    """
    k2 = require_k2()
    acceptors = k2.Fsa(fsas.clone().arcs)
    _relabel(acceptors, {0: grammar.backoff})
    acceptors = k2.add_epsilon_self_loops(acceptors)  # on label 0, so the two change places next
    _relabel(acceptors, {0: grammar.backoff, grammar.backoff: 0})
    only = torch.zeros(acceptors.shape[0], dtype=torch.int32, device=acceptors.device)
    return k2.top_sort(k2.connect(k2.intersect_device(grammar.fsa, acceptors, b_to_a_map=only, sorted_match_a=True)))


def _relabel(fsa: k2.Fsa, names: dict[int, int]) -> None:
    """Replace labels, all at once."""
    labels = fsa.labels
    renamed = labels.clone()
    for old, new in names.items():
        renamed[labels == old] = new
    fsa.labels = renamed
    forget_properties(fsa)


def draw(lattice: k2.Fsa, num_paths: int, scale: float, grammar: RescoringGrammar | None = None) -> list[Nbest]:
    """Sequences along paths that are drawn from each lattice, by their total scores.

    Args:
      num_paths, scale: as `sample_sequences` takes them.
      grammar: scores the sequences instead of the lattice's own language model, which then only drew them.
    """
    return scored(lattice, sample_sequences(lattice, num_paths, scale), grammar)


def draw_rescored(lattice: k2.Fsa, num_paths: int, scale: float, grammar: RescoringGrammar) -> list[Nbest]:
    """As `draw` with a grammar, which the paths are drawn by as well."""
    return scored(lattice, sample_sequences(composed(lattice, grammar), num_paths, scale), grammar)


def scored(lattice: k2.Fsa, sequences: k2.RaggedTensor, grammar: RescoringGrammar | None) -> list[Nbest]:
    """Sequences with axes [lattice][sequence][label] as lists, by their total scores; see `sequence_scores`."""
    acoustic, lm = (scores.tolist() for scores in sequence_scores(lattice, sequences, grammar))
    found, start = [], 0
    for candidates in sequences.tolist():
        own = range(start, start + len(candidates))
        found.append(best_first(Hypothesis(tuple(c), acoustic[i], lm[i]) for c, i in zip(candidates, own, strict=True)))
        start += len(candidates)
    return found


def rescore_lattice(lattice: k2.Fsa, grammar: RescoringGrammar) -> list[Nbest]:
    """Best path of each lattice once the first language model is replaced by another."""
    return one_best(composed(lattice, grammar))


def composed(lattice: k2.Fsa, grammar: RescoringGrammar) -> k2.Fsa:
    """Lattices whose first language model is replaced by another; words are in `labels` and `aux_labels`."""
    k2 = require_k2()
    acoustic = lattice.clone()
    acoustic.scores = lattice.scores - lattice.lm_scores
    rescored = against_grammar(k2.invert(acoustic), grammar)
    labels = rescored.labels.clone()
    labels[labels == grammar.backoff] = 0
    rescored.aux_labels = labels
    return rescored


def rank_by_errors(found: Sequence[Nbest], references: Sequence[Sequence[int]]) -> list[Nbest]:
    """N-best lists by rising edit distance to the references: what a perfect rescoring could reach."""
    from kaldialign import edit_distance

    return [
        sorted(hypotheses, key=lambda hyp: edit_distance(list(reference), list(hyp.labels))["total"])
        for hypotheses, reference in zip(found, references, strict=True)
    ]


def keep_lm_scores(graph: k2.Fsa) -> k2.Fsa:
    """The graph with its scores also in `lm_scores`, which lattices inherit."""
    graph.lm_scores = graph.scores.clone()
    return graph


def nonempty(lattice: k2.Fsa) -> tuple[k2.Fsa, list[int]]:
    """The lattices that have a path, and their indexes."""
    k2 = require_k2()
    rows = [n for n, found in enumerate(has_arcs(lattice)) if found]
    if len(rows) == lattice.shape[0]:
        return lattice, rows
    return k2.index_fsa(lattice, torch.tensor(rows, dtype=torch.int32, device=lattice.device)), rows
