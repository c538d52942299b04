"""Transducer search without lattices: greedy, and beam search over token sequences. Needs torch only.

At most one token per frame, as k2's lattices have it (the "modified" topology). Token 0 is the blank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_k2.decode.beam import BeamStreams, TokenScorer
from lowbit_k2.decode.hypothesis import Hypothesis, Nbest
from lowbit_k2.decode.prediction import TransducerParts, begin
from lowbit_k2.decode.streaming import GreedyStreams


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
    streams = BeamStreams(model, len(encoder_out), beam_size, blank_penalty, lm, lm_scale)
    streams.accept(encoder_out, lens)
    return streams.nbest()
