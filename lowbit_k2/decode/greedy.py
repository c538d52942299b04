"""Best token per frame: the decoders that need torch only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class TransducerParts(Protocol):
    """What transducer search needs of a model."""

    decoder: Callable[..., Tensor]
    joiner: Callable[..., Tensor]


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


@torch.no_grad()
def transducer_greedy_search(
    model: TransducerParts, context_size: int, encoder_out: Tensor, lens: Tensor, blank_penalty: float = 0.0
) -> list[list[int]]:
    """Best class at each frame, at most one token per frame, all utterances side by side; token 0 is the blank.

    Args:
      model: prediction network and joiner.
      context_size: tokens that the prediction network sees.
      encoder_out: (N, T, C).
      lens: (N,) valid frames.
      blank_penalty: subtracted from the blank's logit; more tokens where a model deletes too many.

    Returns:
      N lists of token ids.
    """
    n, num_frames, _ = encoder_out.shape
    history = torch.zeros(n, context_size, dtype=torch.int64, device=encoder_out.device)
    projected = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
    after = model.joiner.decoder_proj(model.decoder(history, pad=False))  # (N, 1, D)
    found: list[list[int]] = [[] for _ in range(n)]
    lens = lens.to(encoder_out.device)
    for t in range(num_frames):
        logits = model.joiner(projected[:, t], after[:, 0], project=False)  # (N, V)
        logits[:, 0] -= blank_penalty
        best = torch.where(lens > t, logits.argmax(dim=-1), 0)  # (N,)
        emitting = best.nonzero().flatten()
        if not len(emitting):
            continue
        for i, token in zip(emitting.tolist(), best[emitting].tolist(), strict=True):
            found[i].append(token)
        history[emitting] = torch.cat([history[emitting, 1:], best[emitting, None]], dim=1)
        after[emitting] = model.joiner.decoder_proj(model.decoder(history[emitting], pad=False))
    return found
