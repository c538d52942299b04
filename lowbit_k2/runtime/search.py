"""Greedy search of CTC frames and of transducers, and the transducers' beam search, as decode/ has them, in numpy.

At most one token per frame of a transducer (the "modified" topology). Token 0 is the blank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.runtime.encoder import PackedTransducer

CTC_GREEDY, GREEDY, BEAM = "ctc-greedy-search", "greedy_search", "modified_beam_search"
PLAIN_METHODS = (CTC_GREEDY, GREEDY, BEAM)
Labels = tuple[int, ...]


@dataclass(frozen=True)
class Hypothesis:
    """What a search has heard.

    labels: token ids.
    frames: the network's output frame that each of them came at; of several alignments in the likeliest.
    log_prob: natural logarithm, where the search adds probabilities up.
    """

    labels: Labels = ()
    frames: tuple[int, ...] = ()
    log_prob: float = 0.0


@dataclass(frozen=True)
class SearchConfig(Config):
    """Searches that need no graph; names and defaults are decode.py's."""

    decoding_method: str = option("", f"one of {', '.join(PLAIN_METHODS)}; default: the model's greedy search")
    beam_size: int = option(4, "hypotheses of modified_beam_search", low=1, high=10000)
    blank_penalty: float = option(0.0, "off the blank's logit in transducer search, for models that delete many")

    def check(self) -> None:
        if self.decoding_method not in ("", *PLAIN_METHODS):
            problem = f"{self.decoding_method!r} is unknown: choose of {', '.join(PLAIN_METHODS)}"
            raise ConfigError("decoding_method", problem)


def ctc_greedy_search(log_probs: np.ndarray) -> Hypothesis:
    """The best class of each frame, repeats merged and then blanks removed. log_probs: (T, V)"""
    best = log_probs.argmax(axis=1) if len(log_probs) else np.zeros(0, int)
    begins = np.diff(best, prepend=-1) != 0
    frames = np.flatnonzero(begins & (best != 0))
    return Hypothesis(tuple(best[frames].tolist()), tuple(frames.tolist()))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, over the last dimension."""
    centred = logits - logits.max(axis=-1, keepdims=True).astype(np.float64)
    return centred - np.log(np.exp(centred).sum(axis=-1, keepdims=True))


def greedy_search(network: PackedTransducer, encoder_out: np.ndarray, blank_penalty: float = 0.0) -> Hypothesis:
    """The best class at each frame. encoder_out: (T, C)"""
    contexts, labels, frames = network.contexts(), (), ()
    after = contexts([labels])  # (1, D)
    for place, frame in enumerate(network.joiner.encoder_proj(encoder_out)):
        logits = network.joiner(frame[None], after)[0]  # (V,)
        logits[0] -= np.float32(blank_penalty)
        token = int(logits.argmax())
        if token:
            labels, frames = (*labels, token), (*frames, place)
            after = contexts([labels])
    return Hypothesis(labels, frames)


def modified_beam_search(
    network: PackedTransducer, encoder_out: np.ndarray, beam_size: int = 4, blank_penalty: float = 0.0
) -> list[Hypothesis]:
    """The `beam_size` best token sequences at each frame; alignments of the same sequence are summed.

    Args:
      encoder_out: (T, C).
    Returns:
      Sequences with their log-probabilities over the alignments within the beam, the best first.
    """
    contexts = network.contexts()
    beam = [Hypothesis()]
    for place, frame in enumerate(network.joiner.encoder_proj(encoder_out)):
        logits = network.joiner(frame[None], contexts([hyp.labels for hyp in beam]))  # (M, V)
        logits[:, 0] -= np.float32(blank_penalty)
        beam = _extend(beam, log_softmax(logits), beam_size, place)
    return beam


def _extend(beam: list[Hypothesis], scores: np.ndarray, beam_size: int, frame: int) -> list[Hypothesis]:
    """Every sequence with every class, equal ones summed, the best kept. scores: (M, V)"""
    totals = (scores + np.array([[hyp.log_prob] for hyp in beam])).ravel()
    # A sequence has two origins at most: itself with a blank, and its beginning with its last token.
    count = min(2 * beam_size, len(totals))
    top = np.argpartition(-totals, count - 1)[:count]
    merged: dict[Labels, Hypothesis] = {}
    for place in top[np.argsort(-totals[top], kind="stable")].tolist():  # the likeliest first, whose frames stay
        origin, token = divmod(place, scores.shape[1])
        labels, frames = beam[origin].labels, beam[origin].frames
        if token:
            labels, frames = (*labels, token), (*frames, frame)
        score = float(totals[place])
        if labels in merged:
            frames, score = merged[labels].frames, float(np.logaddexp(merged[labels].log_prob, score))
        merged[labels] = Hypothesis(labels, frames, score)
    return sorted(merged.values(), key=lambda hyp: -hyp.log_prob)[:beam_size]
