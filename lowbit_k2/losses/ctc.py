"""CTC on padded batches, as a sum over utterances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.losses.distillation import Posterior
from lowbit_k2.losses.output import PassOutput, TrainingBatch

BLANK = 0


class CtcCriterion:
    """One pass of a CTC model: its loss, and the frame posteriors that branches are compared on."""

    def __call__(self, model: nn.Module, batch: TrainingBatch, update: int = 0, shared: None = None) -> PassOutput:
        """inputs (N, T, F), input_lens (N,), N token sequences; neither `update` nor `shared` matters here."""
        log_probs, lens = model(batch.inputs, batch.input_lens)
        loss = ctc_loss(log_probs, lens, batch.targets)
        return PassOutput(loss, int(lens.sum()), {"ctc": Posterior.of_frames(log_probs, lens)})


def ctc_loss(log_probs: Tensor, lens: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Negative log-likelihood of the targets, summed over the batch (nats).

    Args:
      log_probs: (N, T, V) float32, normalised over V; token 0 is the blank.
      lens: (N,) valid frames; frames behind them do not count.
      targets: N token sequences, not empty, each with no more `required_frames` (data/filter.py)
        than lens[n].
    """
    assert log_probs.dim() == 3 and len(log_probs) == len(lens) == len(targets), (log_probs.shape, lens.shape)
    lens = lens.cpu()  # once: a wait for the device
    assert int(lens.max()) <= log_probs.size(1), (lens, log_probs.shape)
    target_lens = torch.tensor([len(t) for t in targets])  # (N,)
    flat = torch.tensor([token for t in targets for token in t], device=log_probs.device)
    with torch.autocast(log_probs.device.type, enabled=False):
        by_time = log_probs.float().transpose(0, 1)  # (T, N, V)
        return F.ctc_loss(by_time, flat, lens, target_lens, blank=BLANK, reduction="sum")
