"""Force alignment: when each token of a known transcript is said, by the best path through CTC posteriors.

A path goes through the transcript's tokens in order, with blanks between them where it likes and where two equal tokens
meet (Graves et al. 2006). Where a word has several pronunciations the path takes the best of them. The graph is a line
of words, so that the Viterbi algorithm on it is a page and needs no k2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_k2.errors import UserError

Pronunciations = Sequence[Sequence[int]]  # of a word: token ids, at least one each


@dataclass(frozen=True)
class AlignedToken:
    """A token on the best path.

    Attributes:
      word, token: index of the word in the transcript, and id of the token.
      start, end: frames start .. end - 1 of the network's output; blanks belong to no token.
      log_prob: sum over these frames.
    """

    word: int
    token: int
    start: int
    end: int
    log_prob: float


class _Graph:
    """States with their labels and predecessors; -1 stands for the time before the first frame."""

    def __init__(self, words: Sequence[Pronunciations], blank: int) -> None:
        self.labels, self.words, self.before = [blank], [-1], [[-1, 0]]
        self.blank, ends = blank, [-1, 0]  # where the next word may come from
        for number, pronunciations in enumerate(words):
            new_ends = [self._add_tokens(number, tokens, ends) for tokens in pronunciations]
            gap = self._add(blank, -1, new_ends)
            ends = [*new_ends, gap]
        self.last = ends

    def _add(self, label: int, word: int, before: Sequence[int]) -> int:
        """A state that may also follow itself."""
        state = len(self.labels)
        self.labels.append(label)
        self.words.append(word)
        self.before.append([*before, state])
        return state

    def _add_tokens(self, word: int, tokens: Sequence[int], ends: Sequence[int]) -> int:
        before = ends
        for place, token in enumerate(tokens):
            # equal tokens need a blank between them
            allowed = [state for state in before if state < 0 or self.labels[state] != token]
            state = self._add(token, word, allowed)
            before = [state, self._add(self.blank, -1, [state])] if place + 1 < len(tokens) else [state]
        return before[0]


def align_tokens(log_probs: Tensor, words: Sequence[Pronunciations], blank: int = 0) -> list[AlignedToken]:
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
    graph, scores = _Graph(words, blank), log_probs.double().cpu()
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
    """Stretches of frames in one state, blanks left out."""
    found, start = [], 0
    for t in range(1, len(path) + 1):
        if t == len(path) or path[t] != path[start]:
            state = path[start]
            if graph.words[state] >= 0:
                score = float(emitted[start:t, state].sum())
                found.append(AlignedToken(graph.words[state], graph.labels[state], start, t, score))
            start = t
    return found
