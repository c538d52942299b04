"""A neural language model in decoding: whole sentences at once for rescoring, unit by unit for shallow fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lowbit_k2.errors import UserError

Histories = Sequence[tuple[int, ...]]


class NextUnitModel(Protocol):
    """What decoding needs of a language model; `lowbit_k2.models.lm.LanguageModel` is one."""

    def target_log_probs(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """(N, T), (N, T) -> natural logarithms of the probabilities of the targets, (N, T)."""
        ...

    def first_state(self) -> Tensor: ...

    def step(self, tokens: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """(M,), M states -> (M, V) log-probabilities of the next unit, and the states there."""
        ...


@torch.no_grad()
def sentence_log_probs(
    model: NextUnitModel,
    sentences: Sequence[Sequence[int]],
    boundary: int,
    batch_tokens: int = 4000,
    device: str | torch.device = "cpu",
) -> list[float]:
    """log P of each sentence and its end, in nats.

    Args:
      boundary: the unit before and behind each.
      batch_tokens: units in a batch, padding included; a longer sentence is a batch by itself.
    """
    order = sorted(range(len(sentences)), key=lambda n: -len(sentences[n]))
    scores = [0.0] * len(sentences)
    while order:
        length = len(sentences[order[0]]) + 1
        count = max(1, batch_tokens // length)
        rows, order = order[:count], order[count:]
        padded = torch.full((len(rows), length + 1), boundary)
        for place, n in enumerate(rows):
            padded[place, 1 : len(sentences[n]) + 1] = torch.tensor(sentences[n], dtype=torch.int64)
        padded = padded.to(device)
        found = model.target_log_probs(padded[:, :-1], padded[:, 1:]).double().cumsum(dim=1).tolist()  # (N, T)
        for place, n in enumerate(rows):
            scores[n] = found[place][len(sentences[n])]
    return scores


class NeuralTokenLm:
    """Log-probabilities of the next unit of a recogniser; a `TokenScorer`.

    What the model remembers is kept for the histories of the last call: a longer one is made of its beginning.
    """

    def __init__(
        self,
        model: NextUnitModel,
        boundary: int,
        pieces: Sequence[str],
        own_pieces: Sequence[str],
        device: str | torch.device = "cpu",
    ) -> None:
        """
        Args:
          pieces, own_pieces: the symbol of every id, of the recogniser and of the language model.

        Raises:
          UserError: they are not the same.
        """
        if list(pieces) != list(own_pieces):
            odd = next((p for p, own in zip(pieces, own_pieces, strict=False) if p != own), "the number of them")
            raise UserError(f"it was trained on other units than the recogniser has (first {odd!r}): train it on these")
        self.model, self.device = model, device
        self.known = self._step([boundary], [()], [model.first_state()])
        self.end, self.boundary = {(): float(self.known[()][0][boundary])}, boundary

    def __call__(self, histories: Histories) -> Tensor:
        """(M, V) log-probabilities of the next unit after each history."""
        self._look_up(histories)
        return torch.stack([self.known[history][0] for history in histories])

    def ends(self, histories: Histories) -> Tensor:
        """(M,) log-probabilities that the sentence ends after each history."""
        if any(history not in self.end for history in histories):
            self._look_up(histories)
        return torch.tensor([self.end[history] for history in histories], dtype=torch.float64)

    def _look_up(self, histories: Histories) -> None:
        if not any(histories):  # other sentences begin
            self.end = {(): self.end[()]}
        wanted: set[tuple[int, ...]] = set()
        for history in histories:
            while history not in self.known:
                wanted.add(history)
                history = history[:-1]
        for length in sorted({len(history) for history in wanted}):
            new = [history for history in wanted if len(history) == length]
            states = [self.known[history[:-1]][1] for history in new]
            self.known |= self._step([history[-1] for history in new], new, states)
        self.known = {history: self.known[history] for history in {(), *histories}}
        self.end |= {history: float(self.known[history][0][self.boundary]) for history in histories}

    @torch.no_grad()
    def _step(
        self, tokens: list[int], histories: Histories, states: Sequence[Tensor]
    ) -> dict[tuple[int, ...], tuple[Tensor, Tensor]]:
        log_probs, states = self.model.step(torch.tensor(tokens, device=self.device), states)
        return dict(zip(histories, zip(log_probs, states, strict=True), strict=True))
