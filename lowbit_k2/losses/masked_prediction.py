"""Masked prediction of classes of frames, the loss that HuBERT is pre-trained with (arXiv 2106.07447).

    L = sum over masked frames of -log p(class of the frame | audio with these frames hidden)

as a mean over the masked frames, times the valid ones: what is logged is nats for each masked frame. The same over all
others can be added, which is easier, and helps where there is little time. Spans of frames
are drawn from the number of the update: all its branches see the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit_k2.core.config import Config, option
from lowbit_k2.losses.distillation import Posterior
from lowbit_k2.losses.output import PassOutput, TrainingBatch
from lowbit_k2.models.masked_hubert import MaskedHubert
from lowbit_k2.quant import generator_seed


@dataclass(frozen=True)
class MaskedPredictionConfig(Config):
    """How much is hidden; the defaults are HuBERT's."""

    mask_share: float = option(
        0.8, "frames in masked spans over frames, before spans overlap: about half are hidden", above=0, high=1
    )
    mask_length: int = option(10, "frames in a masked span", low=1, high=1000)
    unmasked_weight: float = option(0.0, "weight of the same loss over frames that are not masked", low=0)
    feature_penalty: float = option(10.0, "weight of the mean square of the extractor's frames", low=0)


class MaskedPredictionCriterion:
    """One pass over audio of which spans are hidden; targets are labels (N, T), int64."""

    def __init__(self, config: MaskedPredictionConfig) -> None:
        self.config = config

    def __call__(self, model: MaskedHubert, batch: TrainingBatch, update: int = 0, shared: None = None) -> PassOutput:
        """inputs (N, S) samples, input_lens (N,)."""
        config = self.config
        generator = torch.Generator().manual_seed(generator_seed("masked spans", 0, update))
        lens = model.config.output_lens(batch.input_lens).cpu()
        masked = draw_spans(lens, config.mask_share, config.mask_length, generator).to(batch.inputs.device)
        found = model.predict(batch.inputs, batch.input_lens, masked)
        assert batch.targets.shape == masked.shape, (batch.targets.shape, masked.shape)
        num_frames = int(lens.sum())

        def told(frames: Tensor) -> tuple[Tensor, Tensor, float]:
            """Logits (M, classes) and targets (M,) of some frames, and what makes a sum over them one over all."""
            return model.head(found.out[frames]), batch.targets[frames], num_frames / max(1, int(frames.sum()))

        logits, targets, scale = told(masked)
        nll = F.cross_entropy(logits, targets, reduction="sum") * scale
        correct = (logits.argmax(dim=-1) == targets).sum() * scale
        parts = {"nll": nll.detach(), "accuracy": correct}
        terms = {"classes": Posterior(logits, torch.full(targets.shape, scale, device=logits.device), False)}
        square = found.features.float().square().mean(dim=-1)  # (N, T)
        loss = nll + config.feature_penalty * (square * found.valid).sum()
        if config.unmasked_weight:
            logits, targets, scale = told(found.valid & ~masked)
            parts["unmasked"] = F.cross_entropy(logits, targets, reduction="sum") * scale
            loss = loss + config.unmasked_weight * parts["unmasked"]
        return PassOutput(loss, num_frames, terms, parts)


def draw_spans(lens: Tensor, share: float, length: int, generator: torch.Generator) -> Tensor:
    """Frames that are hidden: about share * T / length spans of each utterance, one at least, which may overlap.

    Args:
      lens: (N,) frames of each, on the CPU, at least 1.
      length: of a span; in an utterance of less than twice as many frames, half of these.
      generator: on the CPU; the same state gives the same spans.

    Returns:
      (N, T) booleans, False on padding.
    """
    masked = torch.zeros(len(lens), int(lens.max()), dtype=torch.bool)
    for row, frames in zip(masked, lens.tolist(), strict=True):
        width = min(length, max(1, frames // 2))
        places = frames - width + 1
        rounded_up = float(torch.rand((), generator=generator))
        number = min(places, max(1, int(share * frames / width + rounded_up)))
        starts = torch.randperm(places, generator=generator)[:number]
        row[(starts[:, None] + torch.arange(width)).flatten()] = True
    return masked
