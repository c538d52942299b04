"""Distillation of a speech representation from its float model (arXiv 2301.00652).

    L = MSE(y_T, y_S) + sum over layers [ MSE(out_T, out_S) + MSE(att_T, att_S) ]

y is the network's output, out a layer's, att its attention weights; a frame's squared error is a mean over its
numbers. The teacher stands outside (`train/teacher.py`), branches are precisions: one is plain quantization-aware
training, several are co-trained. There is no other loss, but for the penalty that squashed weights (SqWQ) come with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit_k2.core.config import Config, option
from lowbit_k2.losses.distillation import Features
from lowbit_k2.losses.output import PassOutput, TrainingBatch
from lowbit_k2.models.hubert import Representations
from lowbit_k2.models.masking import valid_frames
from lowbit_k2.quant.squashed import squash_penalty


@dataclass(frozen=True)
class RepresentationConfig(Config):
    """What is added to the distances."""

    squash_lambda: float = option(
        0.0, "sqwq: weight, per frame, of the penalty on squashed weights' mean and deviation", low=0
    )


class RepresentationCriterion:
    """One pass of a HuBERT over waveforms (N, S): what the teacher compares, and a penalty where asked."""

    def __init__(self, config: RepresentationConfig | None = None) -> None:
        self.config = config or RepresentationConfig()

    def __call__(self, model: nn.Module, batch: TrainingBatch, update: int = 0, shared: None = None) -> PassOutput:
        found: Representations = model(batch.inputs, batch.input_lens, keep_attention=True)
        mask = valid_frames(found.lens, found.out.size(1)).float()
        terms = {"output": Features(found.out, mask)}
        layers = zip(found.hidden_states[1:], found.attentions, strict=True)
        for i, (hidden, attention) in enumerate(layers):
            terms[f"layer{i}"] = Features(hidden, mask)
            terms[f"attention{i}"] = attention_term(attention, found.lens, mask)
        num_frames, penalty = int(found.lens.sum()), torch.zeros((), device=mask.device)
        if self.config.squash_lambda and model.training:  # which a teacher never is
            penalty = self.config.squash_lambda * num_frames * squash_penalty(model)
        return PassOutput(penalty, num_frames, terms, from_teacher=True)


def attention_term(weights: Tensor, lens: Tensor, mask: Tensor) -> Features:
    """Attention weights (N, H, T, T) as vectors of each query; keys that pad the batch do not thin the mean out."""
    n, h, t, _ = weights.shape
    by_query = weights.transpose(1, 2).reshape(n, t, h * t)  # (N, T, H T)
    return Features(by_query, mask * (t / lens.to(mask.dtype))[:, None])
