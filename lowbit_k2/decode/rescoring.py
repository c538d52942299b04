"""N-best lists in the order of another language model's scores.

    total = acoustic + ngram_scale * n-gram + lm_scale * log P(sentence, its end included)

The n-gram is the search's own, scaled as the search scaled it. A search and the language model run once for all scales.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from lowbit_k2.decode.hypothesis import Nbest, Scales, best_first
from lowbit_k2.decode.method import Method, NetworkOutput, References, Setup

SentenceScorer = Callable[[Sequence[str]], list[float]]  # sentences -> log P of each, in nats


class ScoredLists:
    """The lists of one search with the scores of a language model, kept until the next batch comes."""

    def __init__(self, method: Method, scorer: SentenceScorer) -> None:
        self.method, self.scorer = method, scorer
        self.seconds = 0.0  # that the last batch took
        self._output: NetworkOutput | None = None
        self._found: list[tuple[Nbest, list[float]]] = []

    def find(
        self, output: NetworkOutput, references: References | None
    ) -> tuple[list[tuple[Nbest, list[float]]], bool]:
        """Hypotheses with their words and scores, and whether they were known already."""
        if output is self._output:
            return self._found, True
        start = time.perf_counter()
        lists = [
            [replace(hyp, words=tuple(self.method.words_of(hyp.labels))) for hyp in own]
            for own in self.method.search(output, 1, references)
        ]
        scores = iter(self.scorer([" ".join(hyp.words) for own in lists for hyp in own]))
        self._found = [(own, [next(scores) for _ in own]) for own in lists]
        self._output, self.seconds = output, time.perf_counter() - start
        return self._found, False


class Rescored:
    """A search and what rescoring makes of its lists at certain scales; stands in the place of the method.

    Attributes:
      shared_seconds: of the last call, what another one has taken for both.
    """

    needs_references = False

    def __init__(self, lists: ScoredLists, scales: Scales) -> None:
        self.lists, self.scales = lists, scales
        self.shared_seconds = 0.0

    @property
    def setup(self) -> Setup:
        return self.lists.method.setup

    def words_of(self, labels: Sequence[int]) -> list[str]:
        return self.lists.method.words_of(labels)

    def nbest(self, output: NetworkOutput, n: int = 1, references: References | None = None) -> list[Nbest]:
        """As `Method.nbest`; `lm` of the hypotheses is that of both language models, scaled."""
        found, was_known = self.lists.find(output, references)
        self.shared_seconds = self.lists.seconds if was_known else 0.0
        scales = self.scales
        return [
            best_first(
                replace(hyp, lm=scales.ngram_scale * hyp.lm + scales.lm_scale * score)
                for hyp, score in zip(hypotheses, scores, strict=True)
            )[:n]
            for hypotheses, scores in found
        ]
