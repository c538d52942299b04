"""CTC on padded batches, as a sum over utterances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLANK = 0


def ctc_loss(log_probs: Tensor, lens: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Negative log-likelihood of the targets, summed over the batch (nats).

    Args:
      log_probs: (N, T, V) float32, normalised over V; token 0 is the blank.
      lens: (N,) valid frames; frames behind them do not count.
      targets: N token sequences, not empty, each with no more `required_frames` (data/filter.py)
        than lens[n].
    """
    target_lens = torch.tensor([len(t) for t in targets])
    flat = torch.tensor([token for t in targets for token in t], device=log_probs.device)
    return F.ctc_loss(log_probs.float().transpose(0, 1), flat, lens.cpu(), target_lens, blank=BLANK, reduction="sum")
