"""Greedy CTC search, which needs torch only."""

from __future__ import annotations

from torch import Tensor


def ctc_greedy_search(log_probs: Tensor, lens: Tensor, blank: int = 0) -> list[list[int]]:
    """Best class of each frame, repeats merged, then blanks removed (Graves et al. 2006, "best path decoding").

    Args:
      log_probs: (N, T, V) scores of the classes; any increasing function of the probabilities gives the same.
      lens: (N,) valid frames of each utterance.

    Returns:
      N lists of token ids.
    """
    assert log_probs.dim() == 3 and len(lens) == len(log_probs), (log_probs.shape, lens.shape)
    best = log_probs.argmax(dim=-1).tolist()  # (N, T)
    return [_collapse(frames[:length], blank) for frames, length in zip(best, lens.tolist(), strict=True)]


def _collapse(frames: list[int], blank: int) -> list[int]:
    """Merge repeats, then drop blanks."""
    changes = [token for t, token in enumerate(frames) if t == 0 or token != frames[t - 1]]
    return [token for token in changes if token != blank]
