"""Transducer search without lattices: greedy, and beam search over token sequences. Needs torch only.

At most one token per frame, as k2's lattices have it (the "modified" topology). Token 0 is the blank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lowbit_k2.decode.hypothesis import Hypothesis, Nbest, best_first
from lowbit_k2.decode.prediction import TransducerParts, advance, begin
from lowbit_k2.decode.streaming import GreedyStreams


class TokenScorer(Protocol):
    """A language model over tokens, for shallow fusion."""

    def __call__(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """Log-probabilities of the next token after each history, (len(histories), V); the blank's is not used."""

    def ends(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """Log-probabilities that the sentence ends after each history, (len(histories),)."""


def greedy_search(
    model: TransducerParts, encoder_out: Tensor, lens: Tensor, blank_penalty: float = 0.0
) -> list[Hypothesis]:
    """Best class at each frame, all utterances side by side.

    Args:
      model: prediction network and joiner.
      encoder_out: (N, T, C).
      lens: (N,) valid frames.
      blank_penalty: subtracted from the blank's logit.

    Returns:
      N hypotheses with the score of the alignment that was followed.
    """
    streams = GreedyStreams(model, len(encoder_out), encoder_out.device, blank_penalty)
    streams.accept(encoder_out, lens)
    return streams.hypotheses()


@torch.no_grad()
def blank_log_probs(model: TransducerParts, encoder_out: Tensor) -> Tensor:
    """Log-probability of the blank at each frame, before any token: high in pauses. (N, T, C) -> (N, T)"""
    nothing, _ = begin(model, 1, encoder_out.device)
    logits = model.joiner(model.joiner.encoder_proj(encoder_out), nothing[:, None], project=False)
    return logits.float().log_softmax(dim=-1)[..., 0]


@torch.no_grad()
def modified_beam_search(
    model: TransducerParts,
    encoder_out: Tensor,
    lens: Tensor,
    beam_size: int = 4,
    blank_penalty: float = 0.0,
    lm: TokenScorer | None = None,
    lm_scale: float = 0.0,
) -> list[Nbest]:
    """The `beam_size` best token sequences at each frame; alignments of the same sequence are summed.

    Args:
      model: prediction network and joiner.
      encoder_out: (N, T, C).
      lens: (N,) valid frames.
      beam_size: sequences kept per utterance.
      blank_penalty: subtracted from the blank's logit.
      lm: adds `lm_scale` times its log-probability with each token, and with the end of the sentence.

    Returns:
      N lists of hypotheses, whose acoustic scores are summed over their alignments within the beam.
    """
    projected = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
    contexts = ContextCache(model)
    beams: list[Nbest] = [[Hypothesis((), 0.0)] for _ in range(len(lens))]
    lens = lens.tolist()
    for t in range(max(lens, default=0)):
        active = [n for n, length in enumerate(lens) if length > t]
        owners = [n for n in active for _ in beams[n]]
        histories = [hyp.labels for n in active for hyp in beams[n]]
        logits = model.joiner(projected[owners, t], contexts(histories), project=False)  # (M, V)
        logits[:, 0] -= blank_penalty
        scores = logits.double().log_softmax(dim=-1).cpu()
        fusion = torch.zeros_like(scores)
        if lm is not None:
            fusion[:, 1:] = lm_scale * lm(histories).to(fusion)[:, 1:]
        start = 0
        for n in active:
            end = start + len(beams[n])
            beams[n] = extend(beams[n], scores[start:end], fusion[start:end], beam_size)
            start = end
    if lm is not None:
        beams = [
            [_ended(hyp, lm_scale * end) for hyp, end in zip(beam, _ends(lm, beam), strict=True)] for beam in beams
        ]
    return [best_first(beam) for beam in beams]


def _ends(lm: TokenScorer, beam: Nbest) -> list[float]:
    return lm.ends([hyp.labels for hyp in beam]).tolist()


def _ended(hyp: Hypothesis, score: float) -> Hypothesis:
    return replace(hyp, lm=hyp.lm + score)


def extend(beam: Sequence[Hypothesis], scores: Tensor, fusion: Tensor, beam_size: int) -> Nbest:
    """One frame of one utterance: every hypothesis with every class, equal sequences summed, the best kept.

    Args:
      scores, fusion: (M, V) of the network and of the language model, the latter 0 for the blank.
    """
    totals = scores + fusion + torch.tensor([[hyp.total] for hyp in beam], dtype=scores.dtype)  # (M, V)
    num_classes = totals.size(1)
    # A sequence has two origins at most: itself with a blank, and its beginning with its last token.
    top = totals.flatten().topk(min(2 * beam_size, totals.numel()))
    merged: dict[tuple[int, ...], tuple[float, float]] = {}  # total, of it the language model's
    for score, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        origin, token = divmod(index, num_classes)
        labels = beam[origin].labels + ((token,) if token else ())
        if labels in merged:
            score = float(np.logaddexp(merged[labels][0], score))
        merged[labels] = score, beam[origin].lm + float(fusion[origin, token])
    return best_first(Hypothesis(labels, total - lm, lm) for labels, (total, lm) in merged.items())[:beam_size]


class ContextCache:
    """The prediction network's vectors by what it has seen: the same few come back frame after frame.

    Of a network that sees all tokens, the sequences of the last call are kept: a longer one is made of its beginning.
    """

    def __init__(self, model: TransducerParts) -> None:
        self.model = model
        self.context_size = model.decoder.context_size
        vectors, states = begin(model, 1, model.joiner.decoder_proj.weight.device)
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
