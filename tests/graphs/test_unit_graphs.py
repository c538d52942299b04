"""Graphs of units: n-grams with all their probabilities, transcripts with variants, and topologies frame by frame."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pytest

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.topology import num_classes
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import EOS
from lowbit_k2.graphs.unit_graphs import (
    FrameGraph,
    UnitGraph,
    compose,
    expand,
    ngram_graph,
    transcript_graph,
    unit_ngram,
    unit_sequences,
)

# words by their pronunciations, units 1 to 3
GO, NO, TWO_WAYS = [[1, 2]], [[3]], [[2, 1], [2, 3]]
TEXTS = [[GO, NO], [NO, NO, GO], [TWO_WAYS], [GO, TWO_WAYS, NO], [NO]]


def total_of(graph: FrameGraph, frames: tuple[int, ...]) -> float:
    """Weight of all paths that put out these classes."""
    alpha = defaultdict(float, {s: math.exp(w) for s, w in graph.initial if graph.labels[s] == frames[0]})
    for label in frames[1:]:
        new: defaultdict[int, float] = defaultdict(float)
        for a, b, w in graph.arcs:
            if graph.labels[b] == label and a in alpha:
                new[b] += alpha[a] * math.exp(w)
        alpha = new
    return sum(alpha[s] * math.exp(w) for s, w in graph.final if s in alpha)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_graph_has_the_probabilities_of_the_model(order: int) -> None:
    model = unit_ngram(TEXTS, 4, order, "ctc")
    graph = ngram_graph(model, max_arcs=10_000)
    assert len(graph.arcs) == 3 * graph.num_states
    found = dict(unit_sequences(graph, 4))
    assert len(found) == sum(3**n for n in range(5)), "one path for each sequence"
    for units, score in found.items():
        context: tuple[str, ...] = ("<s>",)
        expected = 0.0
        for word in [*map(str, units), EOS]:
            expected += math.log(model.probability(context, word))
            context = (*context, word)
        assert score == pytest.approx(expected, abs=1e-12), units


@pytest.mark.parametrize("order", [2, 3, 4])
def test_what_a_state_says_sums_to_one_however_few_there_are(order: int) -> None:
    model = unit_ngram(TEXTS, 4, order, "ctc")
    sizes = []
    for most in (3, 6, 12, 24, 10_000):
        graph = ngram_graph(model, max_arcs=most)
        assert len(graph.arcs) <= most
        sizes.append(graph.num_states)
        for state, arcs in enumerate(graph.leaving()):
            assert sum(math.exp(w) for *_, w in arcs) + math.exp(graph.final[state]) == pytest.approx(1.0)
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[-1] > sizes[1]
    with pytest.raises(ConfigError, match="max_arcs 2 is less than the 3 arcs of a unigram"):
        ngram_graph(model, max_arcs=2)


def test_silence_is_in_the_ngram_of_the_chain_topology_only() -> None:
    assert "0" not in unit_ngram(TEXTS, 4, 2, "ctc").vocabulary
    model = unit_ngram(TEXTS * 50, 4, 2, "chain")
    assert model.probability(("<s>",), "0") == pytest.approx(0.8, abs=0.08)
    with pytest.raises(UserError, match="no sentence"):
        unit_ngram([], 4, 2, "ctc")


def test_transcripts_accept_their_pronunciations() -> None:
    graph = transcript_graph([TWO_WAYS, GO], "ctc")
    assert sorted(units for units, _ in unit_sequences(graph, 9)) == [(2, 1, 1, 2), (2, 3, 1, 2)]
    graph = transcript_graph([NO, GO], "chain")
    found = {units for units, _ in unit_sequences(graph, 9)}
    silences = itertools.product([(), (0,)], repeat=3)
    assert found == {(*a, 3, *b, 1, 2, *c) for a, b, c in silences}
    for bad in ([], [GO, []]):
        with pytest.raises(UserError, match="no words, or one without pronunciation"):
            transcript_graph(bad, "ctc")


def test_numerators_have_the_weights_of_the_ngram() -> None:
    model = unit_ngram(TEXTS, 4, 3, "ctc")
    language, transcript = ngram_graph(model, 1000), transcript_graph([TWO_WAYS, NO], "ctc")
    weights = dict(unit_sequences(language, 3))
    found = dict(unit_sequences(compose(transcript, language), 9))
    assert found == pytest.approx({units: weights[units] for units in [(2, 1, 3), (2, 3, 3)]})
    nothing = compose(transcript, transcript_graph([GO], "ctc"))
    assert not nothing.arcs and not nothing.final


def collapse(frames: tuple[int, ...], topology: str) -> tuple[int, ...] | None:
    """The units that a sequence of classes stands for; None for none."""
    if topology == "ctc":
        return tuple(label for label, _ in itertools.groupby(frames) if label)
    units: list[int] = []
    for place, label in enumerate(frames):
        if label % 2 == 0:
            units.append(label // 2)
        elif place == 0 or frames[place - 1] not in (label - 1, label):
            return None
    return tuple(units)


@pytest.mark.parametrize(("topology", "num_units", "longest"), [("ctc", 4, 5), ("chain", 3, 4)])
def test_every_sequence_of_frames_has_the_weight_of_its_units(topology: str, num_units: int, longest: int) -> None:
    texts = TEXTS if topology == "ctc" else [[[[1, 2]], [[2]]], [[[1]]], [[[2, 2]]]]
    language = ngram_graph(unit_ngram(texts, num_units, 2, topology), 1000)
    graph, weights = expand(language, topology), dict(unit_sequences(language, longest))
    classes = num_classes(topology, num_units)
    assert set(graph.labels) <= set(range(classes))
    for length in range(1, longest + 1):
        for frames in itertools.product(range(classes), repeat=length):
            units = collapse(frames, topology)
            # the n-gram's text always has something to say: an utterance of blanks alone has the weight of no unit
            expected = 0.0 if units is None or (topology == "chain" and not units) else math.exp(weights[units])
            assert total_of(graph, frames) == pytest.approx(expected, rel=1e-9), frames


def test_an_unknown_topology() -> None:
    with pytest.raises(ConfigError, match="'hmm' is unknown: choose one of ctc, chain"):
        expand(UnitGraph((), {}, 1), "hmm")
