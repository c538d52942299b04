"""The distance between two HuBERTs on speech, written out, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowbit_k2.asr.compared_states import compare
from lowbit_k2.asr.model_io import LoadedModel
from lowbit_k2.asr.representations import Representation, SpeechConfig
from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.data.features import load_samples
from lowbit_k2.data.tokenizer import NoUnits
from lowbit_k2.errors import UserError
from lowbit_k2.quant import Allocation, QuantConfig, quantize_model, use_precision
from tests.models.hubert_samples import BASE, random_model
from tests.recipe.waves import make_waves


def representation(config: HubertConfig, seed: int, bits: int = 32) -> Representation:
    model, quant = random_model(config, seed), QuantConfig.preset("bit-la", precisions=(2, 1))
    quantize_model(model, quant)
    return Representation(LoadedModel(model, config, quant, NoUnits(), {}), Allocation.uniform(bits))


@torch.no_grad()
def test_the_distance_is_a_mean_over_frames(tmp_path: Path) -> None:
    speech = SpeechConfig("mine", ("dev",), make_waves(tmp_path), max_duration=1.0)  # several batches, padded
    teacher, student = representation(BASE, 0), representation(BASE, 0, bits=1)
    cuts = speech.cuts("dev")
    total, frames = 0.0, 0
    for cut in cuts:
        x = load_samples(cut)[None]
        with use_precision(teacher.loaded.model, 32):
            a = teacher.loaded.model(x, keep_attention=True)
        with use_precision(student.loaded.model, 1):
            b = student.loaded.model(x, keep_attention=True)
        pairs = [(a.out, b.out), *zip(a.hidden_states[1:], b.hidden_states[1:], strict=True)]
        pairs += zip(a.attentions, b.attentions, strict=True)
        total += sum((p.double() - q.double()).square().mean().item() for p, q in pairs) * a.out.size(1)
        frames += a.out.size(1)
    found = compare(student, teacher, speech.module(), cuts)
    assert found.distance == pytest.approx(total / frames, rel=1e-3) and found.distance > 0.1
    assert found.audio == pytest.approx(sum(cut.duration for cut in cuts))
    assert found.seconds > 0 and found.teacher_seconds > 0
    assert compare(teacher, representation(BASE, 0), speech.module(), cuts).distance == 0


def test_other_networks_are_refused(tmp_path: Path) -> None:
    speech = SpeechConfig("mine", ("dev",), make_waves(tmp_path))
    with pytest.raises(UserError, match="differ in frames, layers, width or heads"):
        other = representation(replace(BASE, num_layers=2), 0)
        compare(other, representation(BASE, 0), speech.module(), speech.cuts("dev"))
