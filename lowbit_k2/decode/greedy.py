"""Greedy CTC search, which needs torch only."""

from __future__ import annotations

from torch import Tensor

from lowbit_k2.decode.hypothesis import Hypothesis


def ctc_greedy_search(log_probs: Tensor, lens: Tensor, blank: int = 0) -> list[Hypothesis]:
    """Best class of each frame, repeats merged, then blanks removed (Graves et al. 2006, "best path decoding").

    Args:
      log_probs: (N, T, V) log-probabilities of the classes.
      lens: (N,) valid frames of each utterance.

    Returns:
      N hypotheses with the score of their best alignment, the best one of all.
    """
    assert log_probs.dim() == 3 and len(lens) == len(log_probs), (log_probs.shape, lens.shape)
    scores, best = log_probs.max(dim=-1)  # (N, T) each
    return [
        Hypothesis(_collapse(tokens[:length], blank), float(own[:length].double().sum()))
        for own, tokens, length in zip(scores.cpu(), best.tolist(), lens.tolist(), strict=True)
    ]


def _collapse(frames: list[int], blank: int) -> tuple[int, ...]:
    """Merge repeats, then drop blanks."""
    changes = [token for t, token in enumerate(frames) if t == 0 or token != frames[t - 1]]
    return tuple(token for token in changes if token != blank)
