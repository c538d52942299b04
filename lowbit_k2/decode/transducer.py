"""Transducer search without lattices: greedy, and beam search over token sequences. Needs torch only.

At most one token per frame, as k2's lattices have it (the "modified" topology). Token 0 is the blank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lowbit_k2.decode.hypothesis import Hypothesis, Nbest, best_first


class TransducerParts(Protocol):
    """What transducer search needs of a model."""

    decoder: Callable[..., Tensor]
    joiner: Callable[..., Tensor]


class TokenScorer(Protocol):
    """A language model over tokens, for shallow fusion."""

    def __call__(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """Log-probabilities of the next token after each history, (len(histories), V); the blank's is not used."""

    def ends(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """Log-probabilities that the sentence ends after each history, (len(histories),)."""


@torch.no_grad()
def greedy_search(
    model: TransducerParts, context_size: int, encoder_out: Tensor, lens: Tensor, blank_penalty: float = 0.0
) -> list[Hypothesis]:
    """Best class at each frame, all utterances side by side.

    Args:
      model: prediction network and joiner.
      context_size: tokens that the prediction network sees.
      encoder_out: (N, T, C).
      lens: (N,) valid frames.
      blank_penalty: subtracted from the blank's logit.

    Returns:
      N hypotheses with the score of the alignment that was followed.
    """
    n, num_frames, _ = encoder_out.shape
    history = torch.zeros(n, context_size, dtype=torch.int64, device=encoder_out.device)
    projected = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
    after = project_contexts(model, history)  # (N, D)
    found: list[list[int]] = [[] for _ in range(n)]
    total = torch.zeros(n, dtype=torch.float64, device=encoder_out.device)
    lens = lens.to(encoder_out.device)
    for t in range(num_frames):
        logits = model.joiner(projected[:, t], after, project=False)  # (N, V)
        logits[:, 0] -= blank_penalty
        scores, best = logits.float().log_softmax(dim=-1).max(dim=-1)  # (N,) each
        total += torch.where(lens > t, scores, 0.0)
        best = torch.where(lens > t, best, 0)
        emitting = best.nonzero().flatten()
        if not len(emitting):
            continue
        for i, token in zip(emitting.tolist(), best[emitting].tolist(), strict=True):
            found[i].append(token)
        history[emitting] = torch.cat([history[emitting, 1:], best[emitting, None]], dim=1)
        after[emitting] = project_contexts(model, history[emitting])
    return [Hypothesis(tuple(tokens), score) for tokens, score in zip(found, total.tolist(), strict=True)]


def project_contexts(model: TransducerParts, contexts: Tensor) -> Tensor:
    """Last tokens (M, context_size) -> (M, D), the joiner's second input."""
    return model.joiner.decoder_proj(model.decoder(contexts, pad=False))[:, 0]


@torch.no_grad()
def blank_log_probs(model: TransducerParts, context_size: int, encoder_out: Tensor) -> Tensor:
    """Log-probability of the blank at each frame, before any token: high in pauses. (N, T, C) -> (N, T)"""
    nothing = torch.zeros(1, context_size, dtype=torch.int64, device=encoder_out.device)
    logits = model.joiner(model.joiner.encoder_proj(encoder_out), project_contexts(model, nothing), project=False)
    return logits.float().log_softmax(dim=-1)[..., 0]


@torch.no_grad()
def modified_beam_search(
    model: TransducerParts,
    context_size: int,
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
      context_size: tokens that the prediction network sees.
      encoder_out: (N, T, C).
      lens: (N,) valid frames.
      beam_size: sequences kept per utterance.
      blank_penalty: subtracted from the blank's logit.
      lm: adds `lm_scale` times its log-probability with each token, and with the end of the sentence.

    Returns:
      N lists of hypotheses, whose acoustic scores are summed over their alignments within the beam.
    """
    projected = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
    contexts = ContextCache(model, context_size)
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
    """The prediction network's vectors by context: the same few come back frame after frame."""

    def __init__(self, model: TransducerParts, context_size: int) -> None:
        self.model = model
        self.context_size = context_size
        self.device = model.joiner.decoder_proj.weight.device
        self.known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """Token sequences -> (M, D)."""
        contexts = [((0,) * self.context_size + tokens)[-self.context_size :] for tokens in histories]
        new = [context for context in dict.fromkeys(contexts) if context not in self.known]
        if new:
            vectors = project_contexts(self.model, torch.tensor(new, device=self.device))
            self.known.update(zip(new, vectors, strict=True))
        return torch.stack([self.known[context] for context in contexts])
