"""Greedy search of CTC frames and of transducers, and the transducers' beam search, as decode/ has them, in numpy.

At most one token per frame of a transducer (the "modified" topology). Token 0 is the blank.
"""

from __future__ import annotations

from dataclasses import dataclass
from os.path import commonprefix

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


class GreedyStream:
    """The best class at each frame of a transducer, while encoder frames come in.

    hypothesis: what was heard so far.
    """

    def __init__(self, network: PackedTransducer, blank_penalty: float = 0.0) -> None:
        self.network, self.blank_penalty = network, np.float32(blank_penalty)
        self.contexts, self.hypothesis, self.frames = network.contexts(), Hypothesis(), 0
        self._after = self.contexts([()])  # (1, D)

    def accept(self, encoder_out: np.ndarray) -> Labels:
        """Go on through more frames, (T, C), any T; the tokens that they have brought."""
        known, (labels, frames) = len(self.hypothesis.labels), (self.hypothesis.labels, self.hypothesis.frames)
        for frame in self.network.joiner.encoder_proj(encoder_out):
            logits = self.network.joiner(frame[None], self._after)[0]  # (V,)
            logits[0] -= self.blank_penalty
            token = self.choose(logits)
            if token:
                labels, frames = (*labels, token), (*frames, self.frames)
                self._after = self.contexts([labels])
            self.frames += 1
        self.hypothesis = Hypothesis(labels, frames)
        return labels[known:]

    def choose(self, logits: np.ndarray) -> int:
        """The class of a frame, of logits (V,); 0 is the blank."""
        return int(logits.argmax())

    @property
    def best(self) -> Hypothesis:
        return self.hypothesis


class BeamStream:
    """The `beam_size` best token sequences at each frame of a transducer, while encoder frames come in.

    Alignments of the same sequence are summed.

    beam: sequences with their log-probabilities over the alignments within the beam, the best first.
    """

    def __init__(self, network: PackedTransducer, beam_size: int = 4, blank_penalty: float = 0.0) -> None:
        self.network, self.beam_size, self.blank_penalty = network, beam_size, np.float32(blank_penalty)
        self.contexts, self.beam, self.frames, self._settled = network.contexts(), [Hypothesis()], 0, 0

    def accept(self, encoder_out: np.ndarray) -> Labels:
        """Go on through more frames, (T, C), any T; the tokens that come no more in doubt: all of the beam has them."""
        for frame in self.network.joiner.encoder_proj(encoder_out):
            logits = self.network.joiner(frame[None], self.contexts([hyp.labels for hyp in self.beam]))  # (M, V)
            logits[:, 0] -= self.blank_penalty
            self.beam = _extend(self.beam, log_softmax(logits), self.beam_size, self.frames)
            self.frames += 1
        common = commonprefix([hyp.labels for hyp in self.beam])
        known, self._settled = self._settled, len(common)
        return common[known:]

    @property
    def best(self) -> Hypothesis:
        return self.beam[0]


def greedy_search(network: PackedTransducer, encoder_out: np.ndarray, blank_penalty: float = 0.0) -> Hypothesis:
    """The best class at each frame. encoder_out: (T, C)"""
    stream = GreedyStream(network, blank_penalty)
    stream.accept(encoder_out)
    return stream.best


def modified_beam_search(
    network: PackedTransducer, encoder_out: np.ndarray, beam_size: int = 4, blank_penalty: float = 0.0
) -> list[Hypothesis]:
    """The best sequences, see `BeamStream`. encoder_out: (T, C)"""
    stream = BeamStream(network, beam_size, blank_penalty)
    stream.accept(encoder_out)
    return stream.beam


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
