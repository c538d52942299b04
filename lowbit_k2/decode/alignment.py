"""Force alignment: when each token of a known transcript is said, by the best path through frame posteriors.

A path goes through the transcript's tokens in order; with the ctc topology blanks stand between them where it likes and
where two equal tokens meet (Graves et al. 2006), with chain silence may stand between words and at both ends. Where a
word has several pronunciations the path takes the best of them. The graph is a line of words, so that the Viterbi
algorithm on it is a page and needs no k2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_k2.core.topology import CTC, SILENCE, entry_class
from lowbit_k2.errors import UserError

Pronunciations = Sequence[Sequence[int]]  # of a word: token ids, at least one each


@dataclass(frozen=True)
class AlignedToken:
    """A token on the best path.

    Attributes:
      word, token: index of the word in the transcript, and id of the token.
      start, end: frames start .. end - 1 of the network's output; blanks and silence belong to no token.
      log_prob: sum over these frames.
    """

    word: int
    token: int
    start: int
    end: int
    log_prob: float


class _Graph:
    """States and their predecessors; -1 stands for the time before the first frame.

    Attributes:
      labels: class of the network of each state.
      spans: index in `tokens` of each state, -1 for those of blanks and silence.
      tokens: (word, token) of each place of a token in a pronunciation.
      last: states that a path may end in.
    """

    def __init__(self, words: Sequence[Pronunciations], topology: str) -> None:
        self.topology = topology
        self.labels: list[int] = []
        self.spans: list[int] = []
        self.before: list[list[int]] = []
        self.tokens: list[tuple[int, int]] = []
        ends = [-1, *self._gap([-1])]  # where the next word may come from
        for number, pronunciations in enumerate(words):
            new_ends = [state for tokens in pronunciations for state in self._add_word(number, tokens, ends)]
            ends = [*new_ends, *self._gap(new_ends)]
        self.last = ends

    def _add(self, label: int, span: int, before: Sequence[int], repeats: bool) -> int:
        state = len(self.labels)
        self.labels.append(label)
        self.spans.append(span)
        self.before.append([*before, state] if repeats else list(before))
        return state

    def _add_unit(self, unit: int, span: int, before: Sequence[int]) -> list[int]:
        """The states of a unit, in each of which it may end."""
        entry = entry_class(self.topology, unit)
        if self.topology == CTC:
            return [self._add(entry, span, before, repeats=True)]
        first = self._add(entry, span, before, repeats=False)
        return [first, self._add(entry + 1, span, [first], repeats=True)]

    def _gap(self, before: Sequence[int]) -> list[int]:
        """Blanks, or silence."""
        return self._add_unit(SILENCE, -1, before)

    def _add_word(self, word: int, tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
        before = list(ends)
        for place, token in enumerate(tokens):
            self.tokens.append((word, token))
            if self.topology == CTC:  # equal tokens need a blank between them
                before = [state for state in before if state < 0 or self.labels[state] != token]
            own = self._add_unit(token, len(self.tokens) - 1, before)
            inside = self.topology == CTC and place + 1 < len(tokens)
            before = [*own, *self._gap(own)] if inside else own
        return before


def align_tokens(log_probs: Tensor, words: Sequence[Pronunciations], topology: str = CTC) -> list[AlignedToken]:
    """The best path of a transcript.

    Args:
      log_probs: (T, V) of one utterance.
      words: pronunciations of each word, as token ids.

    Raises:
      UserError: no words, or more tokens than the frames can hold.
    """
    assert log_probs.dim() == 2, log_probs.shape
    if not words:
        raise UserError("there are no words to align")
    graph, scores = _Graph(words, topology), log_probs.double().cpu()
    width = max(map(len, graph.before))
    nowhere = len(graph.labels)  # a state that is never reached
    place = {-1: nowhere + 1}  # and one that is reached before the first frame only
    before = torch.tensor([[place.get(s, s) for s in row] + [nowhere] * (width - len(row)) for row in graph.before])
    emitted = scores[:, graph.labels]  # (T, S)
    reached = torch.full((len(graph.labels) + 2,), -torch.inf, dtype=torch.float64)
    reached[-1] = 0.0
    back = torch.empty((len(scores), len(graph.labels)), dtype=torch.long)
    for t, row in enumerate(emitted):
        best, which = reached[before].max(dim=1)  # (S,)
        back[t] = before.gather(1, which.unsqueeze(1)).squeeze(1)
        reached = torch.cat([best + row, torch.full((2,), -torch.inf, dtype=torch.float64)])
    ends = torch.tensor([state for state in graph.last if state >= 0])
    if not len(scores) or not torch.isfinite(reached[ends].max()):
        raise UserError(f"{len(scores)} frames cannot hold the transcript: is it that of this audio?")
    state, path = int(ends[reached[ends].argmax()]), []
    for t in reversed(range(len(scores))):
        path.append(state)
        state = int(back[t, state])
    return _spans(path[::-1], graph, emitted)


def _spans(path: Sequence[int], graph: _Graph, emitted: Tensor) -> list[AlignedToken]:
    """Stretches of frames in one token, blanks and silence left out."""
    found, start = [], 0
    for t in range(1, len(path) + 1):
        # a token may not follow itself at the same place: where the span is the same, so is the token
        if t == len(path) or graph.spans[path[t]] != graph.spans[path[start]]:
            span = graph.spans[path[start]]
            if span >= 0:
                score = float(sum(emitted[u, path[u]] for u in range(start, t)))
                found.append(AlignedToken(*graph.tokens[span], start, t, score))
            start = t
    return found
