"""Greedy search over frames, which needs torch only."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lowbit_k2.core.topology import CHAIN, CTC
from lowbit_k2.decode.hypothesis import Hypothesis


def ctc_greedy_search(log_probs: Tensor, lens: Tensor, topology: str = CTC) -> list[Hypothesis]:
    """Best class of each frame, and the units of these (Graves et al. 2006, "best path decoding").

    With the ctc topology repeats are merged and then blanks removed. With chain, a unit begins in its entry class, and
    where the unit changes without one; silence is removed.

    Args:
      log_probs: (N, T, V) log-probabilities of the classes.
      lens: (N,) valid frames of each utterance.

    Returns:
      N hypotheses with the score of their best alignment, the best one of all.
    """
    assert log_probs.dim() == 3 and len(lens) == len(log_probs), (log_probs.shape, lens.shape)
    units_of = COLLAPSE[topology]
    scores, best = log_probs.max(dim=-1)  # (N, T) each
    return [
        Hypothesis(units_of(classes[:length]), float(own[:length].double().sum()))
        for own, classes, length in zip(scores.cpu(), best.tolist(), lens.tolist(), strict=True)
    ]


def _collapse_ctc(frames: list[int]) -> tuple[int, ...]:
    """Merge repeats, then drop blanks."""
    changes = [token for t, token in enumerate(frames) if t == 0 or token != frames[t - 1]]
    return tuple(token for token in changes if token != 0)


def _collapse_chain(frames: list[int]) -> tuple[int, ...]:
    """Entries, and changes of the unit; silence dropped."""
    begins = [c // 2 for t, c in enumerate(frames) if c % 2 == 0 or t == 0 or c // 2 != frames[t - 1] // 2]
    return tuple(unit for unit in begins if unit != 0)


COLLAPSE: dict[str, Callable[[list[int]], tuple[int, ...]]] = {CTC: _collapse_ctc, CHAIN: _collapse_chain}
