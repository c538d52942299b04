"""Greedy search of a transducer while encoder frames come in; the offline search is the same on one chunk.

streams = GreedyStreams(model, n=1)
for chunk in chunks:
    encoder_out, state = model.encoder.stream(chunk, state)
    tokens = streams.accept(encoder_out)
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_k2.decode.hypothesis import Hypothesis
from lowbit_k2.decode.prediction import TransducerParts, advance, begin


class GreedyStreams:
    """The best class at each frame, at most one token a frame, of N streams side by side.

    Attributes:
      tokens: of each stream, so far.
      frames: that each of them came at.
      scores: (N,) float64, of the alignments that were followed.
    """

    @torch.no_grad()
    def __init__(
        self, model: TransducerParts, n: int, device: str | torch.device = "cpu", blank_penalty: float = 0.0
    ) -> None:
        """blank_penalty: subtracted from the blank's logit."""
        self.model, self.blank_penalty = model, blank_penalty
        self.tokens: list[list[int]] = [[] for _ in range(n)]
        self.frames: list[list[int]] = [[] for _ in range(n)]
        self.passed = [0] * n  # frames of each stream that earlier calls of `accept` have had
        self.place = 0  # of the frame in this call
        self.scores = torch.zeros(n, dtype=torch.float64, device=device)
        self.after, self.state = begin(model, n, device)  # (N, D), (N, ...)

    @torch.no_grad()
    def accept(self, encoder_out: Tensor, lens: Tensor | None = None) -> list[list[int]]:
        """Go on through more frames.

        Args:
          encoder_out: (N, T, C), any T.
          lens: (N,) of them that count; all where None.

        Returns:
          N lists of the tokens that these frames have brought.
        """
        known = [len(tokens) for tokens in self.tokens]
        projected = self.model.joiner.encoder_proj(encoder_out)  # (N, T, D)
        lens = torch.full_like(self.scores, encoder_out.size(1)) if lens is None else lens.to(self.scores.device)
        for t in range(encoder_out.size(1)):
            logits = self.model.joiner(projected[:, t], self.after, project=False)  # (N, V)
            logits[:, 0] -= self.blank_penalty
            scores, best = logits.float().log_softmax(dim=-1).max(dim=-1)  # (N,) each
            self.scores += torch.where(lens > t, scores, 0.0)
            self.place = t
            self.emit(torch.where(lens > t, best, 0))
        self.passed = [before + int(count) for before, count in zip(self.passed, lens.tolist(), strict=True)]
        return [tokens[count:] for tokens, count in zip(self.tokens, known, strict=True)]

    def emit(self, best: Tensor) -> None:
        """Put the classes (N,) of a frame behind the tokens; 0 is the blank."""
        emitting = best.nonzero().flatten()
        if not len(emitting):
            return
        for n, token in zip(emitting.tolist(), best[emitting].tolist(), strict=True):
            self.tokens[n].append(token)
            self.frames[n].append(self.passed[n] + self.place)
        self.after[emitting], self.state[emitting] = advance(self.model, best[emitting], self.state[emitting])

    def hypotheses(self) -> list[Hypothesis]:
        """N of them, as they stand."""
        return [
            Hypothesis(tuple(tokens), score, frames=tuple(frames))
            for tokens, score, frames in zip(self.tokens, self.scores.tolist(), self.frames, strict=True)
        ]
