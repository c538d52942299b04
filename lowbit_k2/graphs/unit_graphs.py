"""Graphs of units (phones, or few pieces of a BPE) for sequence training, and their states frame by frame.

    n-gram of units                        ->  UnitGraph  -> FrameGraph      the denominator of LF-MMI
    pronunciations of a transcript's words ->  UnitGraph  -> FrameGraph      a numerator, weighed by the same n-gram

A `UnitGraph` accepts sequences of units; a topology (`core/topology.py`) says how many frames a unit lasts and which
classes of the network it takes, and makes a `FrameGraph` of it, whose states have classes and whose paths visit one
state per frame.

No k2 here: both are small. What a topology does adds no weights of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.topology import CHAIN, CTC, SILENCE, TOPOLOGIES
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import BOS, EOS, BackoffModel, estimate

SILENCE_AT_ENDS, SILENCE_BETWEEN = 0.8, 0.2  # how often the n-gram's text has it there, as Kaldi's lexicons are used
UnitArc = tuple[int, int, int, float]  # from state, to state, unit, log-probability
Pronunciations = Sequence[Sequence[int]]  # of one word, as units


@dataclass(frozen=True)
class UnitGraph:
    """Sequences of units with weights; no epsilons.

    Attributes:
      arcs: by state, the start being 0.
      final: log-probability of an end, by state that has one.
      num_states: states are 0 to num_states - 1.
    """

    arcs: tuple[UnitArc, ...]
    final: Mapping[int, float]
    num_states: int

    def leaving(self) -> list[list[UnitArc]]:
        """Arcs by the state that they leave."""
        found: list[list[UnitArc]] = [[] for _ in range(self.num_states)]
        for arc in self.arcs:
            found[arc[0]].append(arc)
        return found


@dataclass(frozen=True)
class FrameGraph:
    """One state per frame.

    Attributes:
      labels: class of each state.
      initial, final: (state, log-weight).
      arcs: (from state, to state, log-weight).
    """

    labels: tuple[int, ...]
    initial: tuple[tuple[int, float], ...]
    final: tuple[tuple[int, float], ...]
    arcs: tuple[tuple[int, int, float], ...]


# --- n-grams -------------------------------------------------------------------------------------------------------


def unit_ngram(
    transcripts: Iterable[Sequence[Pronunciations]], num_units: int, order: int, topology: str, seed: int = 0
) -> BackoffModel:
    """The n-gram of the units of the training transcripts, each word by its first pronunciation.

    Args:
      transcripts: words of each, as `Tokenizer.pronunciations` gives them.
      num_units: with unit 0.
      order: 2 is a bigram.
      seed: of the silences that are put into the text of the chain topology.

    Raises:
      UserError: no transcript, or an order below 1.
    """
    draw = random.Random(seed)
    units = range(1 if topology == CTC else 0, num_units)
    sentences = (spoken_units(words, topology, draw) for words in transcripts)
    return estimate([list(map(str, s)) for s in sentences if s], order, list(map(str, units)))


def spoken_units(words: Sequence[Pronunciations], topology: str, draw: random.Random) -> list[int]:
    """First pronunciations; with the chain topology also silences, which are drawn."""
    units: list[int] = []
    for place, pronunciations in enumerate(words):
        chance = SILENCE_BETWEEN if place else SILENCE_AT_ENDS
        if topology == CHAIN and draw.random() < chance:
            units.append(SILENCE)
        units += pronunciations[0]
    if topology == CHAIN and words and draw.random() < SILENCE_AT_ENDS:
        units.append(SILENCE)
    return units


def ngram_graph(model: BackoffModel, max_arcs: int) -> UnitGraph:
    """All sequences with their probabilities, backed-off ones included: every state has an arc for every unit.

    States are the histories that the model tells apart; longer ones than fit are cut to their last units, the rarest
    first, until there are no more than `max_arcs` arcs.

    Raises:
      UserError: even the unigram has more arcs.
    """
    units = [word for word in model.vocabulary if word != EOS]
    if len(units) > max_arcs:
        raise ConfigError("max_arcs", f"{max_arcs} is less than the {len(units)} arcs of a unigram: allow more")
    histories = _histories(model, max_arcs // len(units))
    numbers = {history: n for n, history in enumerate(histories)}
    arcs: list[UnitArc] = []
    final: dict[int, float] = {}
    for history, number in numbers.items():
        for unit in units:
            following = (*history, unit)[max(0, len(history) + 2 - model.order) :]
            while following not in numbers:
                following = following[1:]
            arcs.append((number, numbers[following], int(unit), math.log(model.probability(history, unit))))
        final[number] = math.log(model.probability(history, EOS))
    return UnitGraph(tuple(arcs), final, len(numbers))


def _histories(model: BackoffModel, limit: int) -> list[tuple[str, ...]]:
    """Histories that become states, the sentence's beginning first; of each kept one, all ends are kept."""
    if model.order == 1 or limit < 2:
        return [()]
    known: dict[tuple[str, ...], None] = {(BOS,): None, (): None}
    for length in range(1, model.order):
        seen: dict[tuple[str, ...], float] = {}
        for ngram, probability in model.probabilities[length].items():
            seen[ngram[:-1]] = seen.get(ngram[:-1], 0.0) + probability
        # those that leave least to backing off have been seen the most
        for history in sorted(seen, key=lambda h: (model.backoffs.get(h, 1.0), h)):
            if len(known) >= limit:
                return list(known)
            if history[1:] in known or not history[1:]:
                known.setdefault(history)
    return list(known)


# --- transcripts ---------------------------------------------------------------------------------------------------


def transcript_graph(words: Sequence[Pronunciations], topology: str) -> UnitGraph:
    """All pronunciations of a transcript, without weights; with the chain topology silence between words if it likes.

    Raises:
      UserError: a word without pronunciation, or no word.
    """
    if not words or not all(words):
        raise UserError("a transcript has no words, or one without pronunciation")
    arcs: list[UnitArc] = []
    states = 1

    def optional_silence(start: int) -> list[int]:
        """States in which the next word may begin."""
        nonlocal states
        if topology != CHAIN:
            return [start]
        arcs.append((start, states, SILENCE, 0.0))
        states += 1
        return [start, states - 1]

    begins = optional_silence(0)
    for pronunciations in words:
        end, states = states, states + 1
        for pronunciation in pronunciations:
            sources = begins
            for place, unit in enumerate(pronunciation):
                last = place == len(pronunciation) - 1
                target = end if last else states
                states += 0 if last else 1
                arcs += [(source, target, unit, 0.0) for source in sources]
                sources = [target]
        begins = optional_silence(end)
    return UnitGraph(tuple(arcs), dict.fromkeys(begins, 0.0), states)


def compose(first: UnitGraph, second: UnitGraph) -> UnitGraph:
    """Sequences that both accept, weights added; states that cannot be reached, or lead nowhere, are left out."""
    leaving = first.leaving(), second.leaving()
    numbers = {(0, 0): 0}
    arcs: list[UnitArc] = []
    todo = [(0, 0)]
    for a, b in todo:  # grows
        by_unit: dict[int, list[UnitArc]] = {}
        for arc in leaving[1][b]:
            by_unit.setdefault(arc[2], []).append(arc)
        for _, target, unit, weight in leaving[0][a]:
            for _, other_target, _, other_weight in by_unit.get(unit, ()):
                pair = (target, other_target)
                if pair not in numbers:
                    numbers[pair] = len(numbers)
                    todo.append(pair)
                arcs.append((numbers[a, b], numbers[pair], unit, weight + other_weight))
    final = {
        n: first.final[a] + second.final[b] for (a, b), n in numbers.items() if a in first.final and b in second.final
    }
    return _connected(UnitGraph(tuple(arcs), final, len(numbers)))


def _connected(graph: UnitGraph) -> UnitGraph:
    """Without states from which no final one can be reached."""
    sources: dict[int, list[int]] = {}
    for start, target, _, _ in graph.arcs:
        sources.setdefault(target, []).append(start)
    useful, todo = set(graph.final), list(graph.final)
    for state in todo:  # grows
        for source in sources.get(state, ()):
            if source not in useful:
                useful.add(source)
                todo.append(source)
    order = [0, *sorted(useful - {0})]
    numbers = {state: n for n, state in enumerate(order)}
    arcs = tuple(
        (numbers[a], numbers[b], unit, weight) for a, b, unit, weight in graph.arcs if a in useful and b in useful
    )
    return UnitGraph(arcs, {numbers[s]: w for s, w in graph.final.items()}, len(order))


# --- frames --------------------------------------------------------------------------------------------------------


def expand(graph: UnitGraph, topology: str) -> FrameGraph:
    """The graph frame by frame.

    Raises:
      ConfigError: no such topology.
    """
    if topology not in TOPOLOGIES:
        raise ConfigError("topology", f"{topology!r} is unknown: choose one of {', '.join(TOPOLOGIES)}")
    return _expand_ctc(graph) if topology == CTC else _expand_chain(graph)


def _expand_ctc(graph: UnitGraph) -> FrameGraph:
    """States: a unit that has led to a state of `graph`, and the blank in it."""
    spoken = sorted({(target, unit) for _, target, unit, _ in graph.arcs})
    numbers = {pair: n for n, pair in enumerate(spoken)}
    blanks = {state: len(spoken) + state for state in range(graph.num_states)}
    labels = [unit for _, unit in spoken] + [0] * graph.num_states
    leaving = graph.leaving()
    arcs: list[tuple[int, int, float]] = []
    for (state, unit), number in numbers.items():
        arcs += [(number, number, 0.0), (number, blanks[state], 0.0)]
        arcs += [(number, numbers[target, u], w) for _, target, u, w in leaving[state] if u != unit]
    for state, number in blanks.items():
        arcs.append((number, number, 0.0))
        arcs += [(number, numbers[target, u], w) for _, target, u, w in leaving[state]]
    initial = [(blanks[0], 0.0), *((numbers[target, u], w) for _, target, u, w in leaving[0])]
    ends = [(number, graph.final[state]) for (state, _), number in numbers.items() if state in graph.final]
    ends += [(number, graph.final[state]) for state, number in blanks.items() if state in graph.final]
    return FrameGraph(tuple(labels), tuple(initial), tuple(ends), tuple(arcs))


def _expand_chain(graph: UnitGraph) -> FrameGraph:
    """States: the entry and the loop of a unit that leads to a state of `graph`."""
    spoken = sorted({(target, unit) for _, target, unit, _ in graph.arcs})
    entries = {pair: 2 * n for n, pair in enumerate(spoken)}
    labels = [label for _, unit in spoken for label in (2 * unit, 2 * unit + 1)]
    leaving = graph.leaving()
    arcs: list[tuple[int, int, float]] = []
    ends: list[tuple[int, float]] = []
    for (state, _), entry in entries.items():
        loop = entry + 1
        arcs += [(entry, loop, 0.0), (loop, loop, 0.0)]
        for source in (entry, loop):
            arcs += [(source, entries[target, u], w) for _, target, u, w in leaving[state]]
            if state in graph.final:
                ends.append((source, graph.final[state]))
    initial = [(entries[target, u], w) for _, target, u, w in leaving[0]]
    return FrameGraph(tuple(labels), tuple(initial), tuple(ends), tuple(arcs))


def unit_sequences(graph: UnitGraph, longest: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every path of at most so many units, with its log-probability; for tests and for looking at small graphs."""
    leaving = graph.leaving()
    todo: list[tuple[int, tuple[int, ...], float]] = [(0, (), 0.0)]
    while todo:
        state, units, weight = todo.pop()
        if state in graph.final:
            yield units, weight + graph.final[state]
        if len(units) < longest:
            todo += [(target, (*units, unit), weight + w) for _, target, unit, w in leaving[state]]
