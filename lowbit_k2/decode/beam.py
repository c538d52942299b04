"""Beam search of a transducer over token sequences, while encoder frames come in; offline there is one chunk.

streams = BeamStreams(model, n=1)
for chunk in chunks:
    encoder_out, state = model.encoder.stream(chunk, state)
    settled = streams.accept(encoder_out)
best = streams.nbest()[0][0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lowbit_k2.decode.hypothesis import Hypothesis, Nbest, best_first
from lowbit_k2.decode.prediction import TransducerParts, advance, begin


class TokenScorer(Protocol):
    """A language model over tokens, for shallow fusion."""

    def __call__(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """Log-probabilities of the next token after each history, (len(histories), V); the blank's is not used."""

    def ends(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """Log-probabilities that the sentence ends after each history, (len(histories),)."""


class BeamStreams:
    """The `beam_size` best token sequences at each frame, of N streams side by side; see `modified_beam_search`.

    Attributes:
      beams: of each stream the sequences so far, the best first; a language model's score of the end is not in them.
      settled: of each stream how many tokens all of its sequences begin with: these come no more in doubt.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: TransducerParts,
        n: int,
        device: str | torch.device = "cpu",
        beam_size: int = 4,
        blank_penalty: float = 0.0,
        lm: TokenScorer | None = None,
        lm_scale: float = 0.0,
    ) -> None:
        """Arguments as those of `modified_beam_search`."""
        self.model, self.beam_size, self.blank_penalty = model, beam_size, blank_penalty
        self.lm, self.lm_scale = lm, lm_scale
        self.contexts = ContextCache(model, device)
        self.beams: list[Nbest] = [[Hypothesis((), 0.0, frames=())] for _ in range(n)]
        self.passed = [0] * n  # frames of each stream
        self.settled = [0] * n

    @torch.no_grad()
    def accept(self, encoder_out: Tensor, lens: Tensor | None = None) -> list[list[int]]:
        """As `GreedyStreams.accept`, but what it returns are the tokens that have settled with these frames."""
        projected = self.model.joiner.encoder_proj(encoder_out)  # (N, T, D)
        counts = [encoder_out.size(1)] * len(self.beams) if lens is None else lens.tolist()
        for t in range(max(counts, default=0)):
            self._frame(projected[:, t], [n for n, count in enumerate(counts) if count > t])
        return [self._settle(n) for n in range(len(self.beams))]

    def nbest(self) -> list[Nbest]:
        """N lists of hypotheses as if the streams ended here; they may go on."""
        if self.lm is None:
            return [list(beam) for beam in self.beams]
        return [best_first(map(self._ended, beam, self._ends(beam))) for beam in self.beams]

    def _frame(self, projected: Tensor, active: list[int]) -> None:
        """One frame (N, D) of the streams that have it."""
        origins = [(n, hyp.labels) for n, beam in enumerate(self.beams) for hyp in beam]
        vectors = self.contexts([labels for _, labels in origins])  # of the others, too: they may go on later
        chosen = set(active)
        rows = [row for row, (n, _) in enumerate(origins) if n in chosen]
        owners = [origins[row][0] for row in rows]
        logits = self.model.joiner(projected[owners], vectors[rows], project=False)  # (M, V)
        logits[:, 0] -= self.blank_penalty
        scores = logits.double().log_softmax(dim=-1).cpu()
        fusion = torch.zeros_like(scores)
        if self.lm is not None:
            fusion[:, 1:] = self.lm_scale * self.lm([origins[row][1] for row in rows]).to(fusion)[:, 1:]
        sizes = [len(self.beams[n]) for n in active]
        for n, own, of_lm in zip(active, scores.split(sizes), fusion.split(sizes), strict=True):
            self.beams[n] = extend(self.beams[n], own, of_lm, self.beam_size, self.passed[n])
            self.passed[n] += 1

    def _settle(self, n: int) -> list[int]:
        common = commonprefix([hyp.labels for hyp in self.beams[n]])
        known, self.settled[n] = self.settled[n], len(common)
        return list(common[known:])

    def _ends(self, beam: Nbest) -> list[float]:
        return self.lm.ends([hyp.labels for hyp in beam]).tolist()

    def _ended(self, hyp: Hypothesis, score: float) -> Hypothesis:
        return replace(hyp, lm=hyp.lm + self.lm_scale * score)


def extend(beam: Sequence[Hypothesis], scores: Tensor, fusion: Tensor, beam_size: int, frame: int) -> Nbest:
    """One frame of one utterance: every hypothesis with every class, equal sequences summed, the best kept.

    Args:
      scores, fusion: (M, V) of the network and of the language model, the latter 0 for the blank.
      frame: its number.
    """
    totals = scores + fusion + torch.tensor([[hyp.total] for hyp in beam], dtype=scores.dtype)  # (M, V)
    num_classes = totals.size(1)
    # A sequence has two origins at most: itself with a blank, and its beginning with its last token.
    top = totals.flatten().topk(min(2 * beam_size, totals.numel()))
    # By sequence: total, of it the language model's, and frames: those of the likelier origin, which comes first.
    merged: dict[tuple[int, ...], tuple[float, float, tuple[int, ...]]] = {}
    for score, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        origin, token = divmod(index, num_classes)
        labels, frames = beam[origin].labels, beam[origin].frames
        if token:
            labels, frames = (*labels, token), (*frames, frame)
        if labels in merged:
            score, frames = float(np.logaddexp(merged[labels][0], score)), merged[labels][2]
        merged[labels] = score, beam[origin].lm + float(fusion[origin, token]), frames
    found = (Hypothesis(labels, total - lm, lm, frames=frames) for labels, (total, lm, frames) in merged.items())
    return best_first(found)[:beam_size]


class ContextCache:
    """The prediction network's vectors by what it has seen: the same few come back frame after frame.

    Of a network that sees all tokens, the sequences of the last call are kept: a longer one is made of its beginning.
    """

    def __init__(self, model: TransducerParts, device: str | torch.device = "cpu") -> None:
        self.model = model
        self.context_size = model.decoder.context_size
        vectors, states = begin(model, 1, device)
        self.known = {self.key(()): (vectors[0], states[0])}

    def key(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """What the network sees of a sequence, leading blanks left out."""
        return tokens if self.context_size is None else tokens[-self.context_size :]

    def __call__(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """Token sequences -> (M, D). Each was asked for before, or it goes one token beyond one that was."""
        keys = [self.key(tokens) for tokens in histories]
        new = {key: tokens for key, tokens in zip(keys, histories, strict=True) if key not in self.known}
        if new:
            before = torch.stack([self.known[self.key(tokens[:-1])][1] for tokens in new.values()])
            last = torch.tensor([tokens[-1] for tokens in new.values()], device=before.device)
            self.known.update(zip(new, zip(*advance(self.model, last, before), strict=True), strict=True))
        if self.context_size is None:
            self.known = {key: self.known[key] for key in keys}
        return torch.stack([self.known[key][0] for key in keys])
