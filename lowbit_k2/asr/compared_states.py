"""How far a HuBERT in few bits is from its float model on speech that neither has learnt, and how long each takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowbit_k2.asr.representations import Representation
from lowbit_k2.data.waveforms import WaveformModule
from lowbit_k2.errors import UserError
from lowbit_k2.losses.distillation import as_targets, divergence
from lowbit_k2.losses.representation import RepresentationCriterion
from lowbit_k2.quant import use_precision

if TYPE_CHECKING:
    from lhotse import CutSet


@dataclass(frozen=True)
class Comparison:
    """Of two models on the same speech.

    Attributes:
      distance: what distillation lowers, a mean over frames of the sum of squared errors; 0 where both are one.
      seconds, teacher_seconds: CPU time of their passes, as PyTorch makes them, quantizers included.
      audio: seconds of speech.
    """

    distance: float
    seconds: float
    teacher_seconds: float
    audio: float


@torch.no_grad()
def compare(student: Representation, teacher: Representation, module: WaveformModule, cuts: CutSet) -> Comparison:
    """Pass by pass in turn, each at its own precision.

    Raises:
      UserError: the models differ in layers, widths or heads, or there is audio that cannot be read.
    """
    if student.config.compared_on != teacher.config.compared_on:
        raise UserError("the two models differ in frames, layers, width or heads: compare a student with its teacher")
    criterion, total, frames, audio = RepresentationCriterion(), 0.0, 0, 0
    spent = {"teacher": 0.0, "student": 0.0}
    sides = [("teacher", teacher), ("student", student)]
    for batch in module.valid_batches(cuts):
        found = {}
        sides.reverse()  # whoever comes second finds the batch in the cache
        for name, side in sides:
            start = time.process_time()
            with use_precision(side.loaded.model, side.allocation):
                found[name] = criterion(side.loaded.model, batch)
            spent[name] += time.process_time() - start
        total += float(divergence(as_targets(found["teacher"].terms), found["student"].terms, {}))
        frames += found["teacher"].num_frames
        audio += int(batch.input_lens.sum())
    return Comparison(total / frames, spent["student"], spent["teacher"], audio / module.features.sampling_rate)
