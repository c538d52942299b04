"""Distillation of a speech representation from its float model (arXiv 2301.00652).

    L = MSE(y_T, y_S) + sum over layers [ MSE(out_T, out_S) + MSE(att_T, att_S) ]

y is the network's output, out a layer's, att its attention weights; a frame's squared error is a mean over its
numbers. The teacher stands outside (`train/teacher.py`), branches are precisions: one is plain quantization-aware
training, several are co-trained. There is no other loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowbit_k2.losses.distillation import Features
from lowbit_k2.losses.output import PassOutput, TrainingBatch
from lowbit_k2.models.hubert import Representations
from lowbit_k2.models.masking import valid_frames


class RepresentationCriterion:
    """One pass of a HuBERT over waveforms (N, S): no loss of its own, but what it is compared with the teacher on."""

    def __call__(self, model: nn.Module, batch: TrainingBatch, update: int = 0, shared: None = None) -> PassOutput:
        found: Representations = model(batch.inputs, batch.input_lens, keep_attention=True)
        mask = valid_frames(found.lens, found.out.size(1)).float()
        terms = {"output": Features(found.out, mask)}
        layers = zip(found.hidden_states[1:], found.attentions, strict=True)
        for i, (hidden, attention) in enumerate(layers):
            terms[f"layer{i}"] = Features(hidden, mask)
            terms[f"attention{i}"] = attention_term(attention, found.lens, mask)
        return PassOutput(torch.zeros((), device=mask.device), int(found.lens.sum()), terms)


def attention_term(weights: Tensor, lens: Tensor, mask: Tensor) -> Features:
    """Attention weights (N, H, T, T) as vectors of each query; keys that pad the batch do not thin the mean out."""
    n, h, t, _ = weights.shape
    by_query = weights.transpose(1, 2).reshape(n, t, h * t)  # (N, T, H T)
    return Features(by_query, mask * (t / lens.to(mask.dtype))[:, None])
