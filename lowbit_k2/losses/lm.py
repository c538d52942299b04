"""The loss of a language model: -log of the probability of each next unit, ends of sentences included."""

from __future__ import annotations

import torch.nn.functional as F

from lowbit_k2.losses.distillation import Posterior
from lowbit_k2.losses.output import PassOutput, TrainingBatch
from lowbit_k2.models.lm import LanguageModel
from lowbit_k2.models.masking import valid_frames


class LmCriterion:
    """One pass of a language model: cross-entropy over its units (nats), whose distributions branches compare."""

    def __call__(self, model: LanguageModel, batch: TrainingBatch, update: int = 0, shared: None = None) -> PassOutput:
        """inputs and targets (N, T) int64, input_lens (N,); neither `update` nor `shared` matters here."""
        valid = valid_frames(batch.input_lens, batch.inputs.size(1)).flatten().nonzero().squeeze(1)  # (units,)
        # the output is the largest part of a pass: padding takes none of it
        logits = model.logits_of(model.hidden(batch.inputs).flatten(0, 1)[valid])  # (units, V)
        loss = F.cross_entropy(logits, batch.targets.flatten()[valid], reduction="sum")
        terms = {"next": Posterior(logits, logits.new_ones(len(logits)), normalized=False)}
        return PassOutput(loss, len(logits), terms)
