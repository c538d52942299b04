"""An n-gram over the model's units, for shallow fusion, and what a language model knows beyond one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lowbit_k2.core.config import ConfigError
from lowbit_k2.decode.beam import TokenScorer
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.lexicon import BLANK
from lowbit_k2.graphs.ngram import BOS, EOS, BackoffModel, Ngram, read_arpa

NEVER = -230.0  # nats; ARPA's -99
MOST_CACHED = 4096  # histories whose next tokens are kept


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else NEVER


class TokenLm:
    """Log-probabilities of the next token by a back-off n-gram; a `TokenScorer`.

    Args:
      model: over the units, as `make_lm --units` writes it.
      pieces: the symbol of every id; those in `<>` may be missing and then get no probability.

    Raises:
      UserError: the n-gram lacks other units: it was made for another model.
    """

    def __init__(self, model: BackoffModel, pieces: Sequence[str]) -> None:
        known = set(model.vocabulary)
        missing = [p for p in pieces if p not in known and not (p.startswith("<") and p.endswith(">"))]
        if missing:
            raise UserError(f"the token LM lacks {len(missing)} of the model's units, first {missing[0]!r}")
        self.model = model
        self.pieces = [*pieces, EOS]  # the end of the sentence is the last column
        columns = {piece: i for i, piece in enumerate(self.pieces) if piece != BLANK}
        self._listed: dict[Ngram, tuple[list[int], list[float]]] = {}
        for table in model.probabilities:
            for (*history, word), probability in table.items():
                if word in columns:
                    ids, scores = self._listed.setdefault(tuple(history), ([], []))
                    ids.append(columns[word])
                    scores.append(_log(probability))
        self._row = lru_cache(MOST_CACHED)(self._make_row)

    @classmethod
    def read(cls, path: Path, pieces: Sequence[str], field: str = "token_lm") -> TokenLm:
        """From an ARPA file, which a setting `field` names.

        Raises:
          UserError: a damaged file, or one for other units.
        """
        try:
            return cls(read_arpa(path), pieces)
        except UserError as error:
            raise ConfigError(field, f"{path}: {error}; make it with make_lm") from None

    def _make_row(self, history: Ngram) -> Tensor:
        """(V + 1,) float64: next tokens and the end of the sentence after the last words of a history."""
        if history:
            row = self._row(history[1:]) + _log(self.model.backoffs.get(history, 1.0))
        else:
            row = torch.full((len(self.pieces),), NEVER, dtype=torch.float64)
        ids, scores = self._listed.get(history, ([], []))
        row[ids] = torch.tensor(scores, dtype=torch.float64)
        return row

    def _rows(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """(M, V + 1)."""
        length = self.model.order - 1
        spelled = [(BOS, *(self.pieces[i] for i in ids[-length:] if length)) for ids in histories]
        return torch.stack([self._row(words[max(0, len(words) - length) :]) for words in spelled])

    def __call__(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """(M, V) log-probabilities of the next token after each history."""
        return self._rows(histories)[:, :-1]

    def ends(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """(M,) log-probabilities that the sentence ends after each history."""
        return self._rows(histories)[:, -1]


class LowOrderRatio:
    """A language model less what the transducer has learnt of its training text by itself; a `TokenScorer`.

        lm_scale * log P_lm(y | history) - low_scale * log P_low(y | history)

    The transducer's own language model is taken for a low-order one of its transcripts: LODR, arXiv 2203.16776. Ends of
    sentences are scored alike. Tokens that the low-order model has never met keep the first term alone: its tiny
    probability would lift them above all others.
    """

    def __init__(self, lm: TokenScorer, low: TokenScorer, lm_scale: float, low_scale: float) -> None:
        self.lm, self.low, self.lm_scale, self.low_scale = lm, low, lm_scale, low_scale

    def __call__(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """(M, V) float64."""
        return self._ratio(self.lm(histories), self.low(histories))

    def ends(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """(M,) float64."""
        return self._ratio(self.lm.ends(histories), self.low.ends(histories))

    def _ratio(self, of_lm: Tensor, of_low: Tensor) -> Tensor:
        met = of_low.masked_fill(of_low < NEVER / 2, 0.0)
        return self.lm_scale * of_lm.to(met) - self.low_scale * met
