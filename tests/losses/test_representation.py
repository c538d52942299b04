"""Distillation of hidden states and attention: the formula, padding, and co-training of four precisions by it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.data.batch import Batch
from lowbit_k2.losses.co_training import CoTraining, CoTrainingConfig
from lowbit_k2.losses.distillation import as_targets, divergence
from lowbit_k2.losses.representation import RepresentationCriterion
from lowbit_k2.quant import DEFAULT_RULES, Allocation, QuantConfig, quantize_model, use_precision
from lowbit_k2.train.optim import OptimConfig, floor_of_alphas, make_optimizer
from lowbit_k2.train.teacher import Teacher
from lowbit_k2.train.trainer import LoopConfig, Trainer
from lowbit_k2.train.update import update
from tests.models.hubert_samples import BASE, LENS, random_model, waveforms

CRITERION = RepresentationCriterion()
BITS = (8, 4, 2, 1)


def batch_of(x: Tensor, lens: Tensor) -> Batch:
    return Batch(x, lens, [""] * len(x), [str(i) for i in range(len(x))])


def distance(teacher: nn.Module, student: nn.Module, batch: Batch) -> Tensor:
    targets = as_targets(CRITERION(teacher, batch).terms)
    return divergence(targets, CRITERION(student, batch).terms, {})


@torch.no_grad()
def test_the_formula_and_padding() -> None:
    teacher, student, x = random_model(BASE), random_model(BASE, seed=5), waveforms()
    total = 0.0
    for i, samples in enumerate(LENS.tolist()):
        one = x[i : i + 1, :samples]
        a, b = (model(one, keep_attention=True) for model in (teacher, student))
        pairs = [(a.out, b.out), *zip(a.hidden_states[1:], b.hidden_states[1:], strict=True)]
        pairs += zip(a.attentions, b.attentions, strict=True)
        assert len(pairs) == 1 + 2 * BASE.num_layers
        total += sum((p.double() - q.double()).square().mean().item() for p, q in pairs) * BASE.output_lens(samples)
    torch.testing.assert_close(distance(teacher, student, batch_of(x, LENS)).item(), total, rtol=1e-4, atol=0)
    assert distance(teacher, copy.deepcopy(teacher), batch_of(x, LENS)) == 0


def test_four_precisions_are_trained_together(tmp_path: Path) -> None:
    student = random_model(replace(BASE, dropout=0.0, attention_dropout=0.0))
    batch = batch_of(waveforms()[:, :4000], LENS.clamp(max=4000))
    teacher = copy.deepcopy(student).eval()
    rules = (*HubertConfig.rules, *DEFAULT_RULES)
    config = QuantConfig.preset("bit-la", precisions=BITS, rules=rules, alpha_grad_scale="lsq")
    quantize_model(student, config)
    co_training = CoTrainingConfig(precisions=tuple(map(str, BITS)), teacher="float.pt")  # the file is not read here

    @torch.no_grad()
    def distances() -> dict[int, float]:
        student.eval()
        found = {}
        for bits in BITS:
            with use_precision(student, bits):
                found[bits] = distance(teacher, student, batch).item()
        student.train()
        return found

    before = distances()  # also what sets the grids of activations
    assert before[8] < before[4] < before[1]
    optim = OptimConfig(lr_factor=1.0)
    trainer = Trainer(
        model=student,
        criterion=CRITERION,
        co_training=CoTraining(co_training, BASE.num_layers, config.layer_prefix, seed=1),
        optimizer=make_optimizer(student, optim),
        schedule=lambda number, done: 1e-3,
        normalizer=lambda batch: float(BASE.output_lens(batch.input_lens).sum()),
        config=LoopConfig(num_epochs=1, tensorboard=False),
        exp_dir=tmp_path,
        description={},
        after_update=[floor_of_alphas(student, optim.alpha_floor)],
        teacher=Teacher(teacher, CRITERION, Allocation.uniform(32)),
    )
    metrics = [update(trainer, [batch]) for _ in range(12)]
    assert {f"kl_{bits}" for bits in BITS} <= set(metrics[0])
    after = distances()
    # 8 bits begin next to the teacher, and lose of that what the others gain
    assert all(after[bits] < 0.6 * before[bits] for bits in (4, 2, 1)), (before, after)
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
