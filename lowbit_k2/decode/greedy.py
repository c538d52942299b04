"""The best path of frames without a language model, which needs torch only."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_k2.core.topology import CTC
from lowbit_k2.decode.hypothesis import Hypothesis


def ctc_greedy_search(log_probs: Tensor, lens: Tensor, topology: str = CTC) -> list[Hypothesis]:
    """The units of the best path through the topology, without any language model.

    With ctc that is the best class of each frame, repeats merged and then blanks removed ("best path decoding", Graves
    et al. 2006). With chain, where a unit's loop follows its entry alone, it is found by the Viterbi algorithm, and
    silence is removed; LF-MMI, which trains with an n-gram of units, leaves much to it that is missing here.

    Args:
      log_probs: (N, T, V) log-probabilities of the classes.
      lens: (N,) valid frames of each utterance.

    Returns:
      N hypotheses with the score of their best alignment, the best one of all.
    """
    assert log_probs.dim() == 3 and len(lens) == len(log_probs), (log_probs.shape, lens.shape)
    if topology != CTC:
        return [_best_chain_path(own[:length].cpu()) for own, length in zip(log_probs, lens.tolist(), strict=True)]
    scores, best = log_probs.max(dim=-1)  # (N, T) each
    return [
        _collapse(tokens[:length], float(own[:length].double().sum()))
        for own, tokens, length in zip(scores.cpu(), best.tolist(), lens.tolist(), strict=True)
    ]


def _collapse(tokens: list[int], score: float) -> Hypothesis:
    """Merge repeats, then drop blanks."""
    frames = [t for t, token in enumerate(tokens) if token and (t == 0 or token != tokens[t - 1])]
    return Hypothesis(tuple(tokens[t] for t in frames), score, frames=tuple(frames))


def _best_chain_path(log_probs: Tensor) -> Hypothesis:
    """log_probs (T, 2 U); state 2u is the entry of unit u, 2u + 1 its loop."""
    if not len(log_probs):
        return Hypothesis((), 0.0, frames=())
    emitted = log_probs.double().unflatten(1, (-1, 2))  # (T, U, 2)
    entry, loop = emitted[0, :, 0], torch.full_like(emitted[0, :, 0], -torch.inf)
    before: list[tuple[int, list[bool]]] = []  # what entries come from; whether loops come from loops
    for row in emitted[1:]:
        score, state = torch.stack([entry, loop], dim=1).flatten().max(dim=0)
        before.append((int(state), (loop > entry).tolist()))
        entry, loop = score + row[:, 0], torch.maximum(entry, loop) + row[:, 1]
    total, last = torch.stack([entry, loop], dim=1).flatten().max(dim=0)
    path = [int(last)]
    for state, stays in reversed(before):
        unit, in_loop = divmod(path[-1], 2)
        path.append(2 * unit + stays[unit] if in_loop else state)
    heard = [(t, state // 2) for t, state in enumerate(reversed(path)) if state % 2 == 0 and state > 0]
    return Hypothesis(tuple(unit for _, unit in heard), float(total), frames=tuple(t for t, _ in heard))
