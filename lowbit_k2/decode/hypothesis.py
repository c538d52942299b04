"""What a search returns: a sequence with the scores that it was chosen by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """A sequence of labels, with scores in nats.

    Attributes:
      labels: ids of tokens or, where the graph puts out words, of words.
      acoustic: log-probability by the network: of the best alignment, or of the sum over alignments, as the method has
        it; with `blank_penalty`, what is left of the blanks' logits counts.
      lm: of the language model, scaled as the search scaled it; 0 without one.
      words: what the labels spell.
      frames: the network's output frame that each label came at, of several alignments in the likeliest; None where the
        search does not keep them.
    """

    labels: tuple[int, ...]
    acoustic: float
    lm: float = 0.0
    words: tuple[str, ...] = ()
    frames: tuple[int, ...] | None = None

    @property
    def total(self) -> float:
        """What the search ranks by."""
        return self.acoustic + self.lm


Nbest = list[Hypothesis]  # of one utterance, the best first; empty where no path survived


def best_first(hypotheses: Iterable[Hypothesis]) -> Nbest:
    """Sorted by falling total score; equal ones stay in their order."""
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.total)


@dataclass(frozen=True)
class Scales:
    """Of one way to put lists into the order of another language model's scores (rescoring.py).

    lm_scale: of the language model; 0 leaves the search's order where ngram_scale is 1.
    ngram_scale: of the language model that the search has used, on top of the search's own scale.
    """

    lm_scale: float
    ngram_scale: float = 1.0
