"""The co-training objective against its formula written out, and the draws of stochastic precision."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lowbit_k2.data.batch import Batch
from lowbit_k2.errors import UserError
from lowbit_k2.losses.co_training import CoTraining, CoTrainingConfig
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.models import ConformerConfig, CtcConfig, make_model
from lowbit_k2.quant import Allocation, QuantConfig, quantize_model, use_precision
from lowbit_k2.train.teacher import MeanTeacher, Teacher
from lowbit_k2.train.trainer import make_scaler
from lowbit_k2.train.update import run_branches

CONFIG = CtcConfig(
    ConformerConfig(
        num_features=20,
        d_model=16,
        num_layers=3,
        ffn_dim=32,
        conv_kernel=5,
        subsampling_channels=4,
        dropout=0.0,
        ffn_dropout=0.0,
    ),
    vocab_size=7,
)
LENS = torch.tensor([47, 33])
INPUTS = torch.randn(2, 47, 20, generator=torch.Generator().manual_seed(3))
BATCH = Batch(INPUTS, LENS, ["", ""], ["a", "b"], targets=[[1, 2, 2, 3], [6]])
FRAMES = float(CONFIG.output_lens(LENS).sum())


def setup(precisions=(2, 1), dropout=0.0, **config) -> SimpleNamespace:
    """What `run_branches` needs of a trainer."""
    torch.manual_seed(0)
    model = make_model(replace(CONFIG, encoder=replace(CONFIG.encoder, dropout=dropout))).train()
    quantize_model(model, QuantConfig.preset("paper", precisions=precisions))
    co_training = CoTraining(CoTrainingConfig(**config), CONFIG.encoder.num_layers, "encoder.layers", seed=5)
    return SimpleNamespace(
        model=model,
        co_training=co_training,
        criterion=CtcCriterion(),
        scaler=make_scaler(enabled=False),
        device=torch.device("cpu"),
        config=SimpleNamespace(amp="float32"),
        teacher=None,
        drawn=None,
    )


def run(trainer: SimpleNamespace, update: int = 1) -> dict[str, float]:
    return run_branches(trainer, BATCH, update, FRAMES)


def test_gradients_and_metrics_equal_the_formula_in_one_graph():
    """One backward through the whole formula gives what the sequential branches accumulate."""
    trainer = setup(lambda1=0.3, lambda2=0.7)
    metrics = run(trainer, update=4)

    reference = setup().model
    outs = []
    for branch in trainer.co_training.branches(4):
        with use_precision(reference, branch.allocation):
            outs.append(CtcCriterion()(reference, BATCH))
    lens = CONFIG.output_lens(LENS)
    teacher = outs[0].terms["ctc"].log_probs.detach()
    total = outs[0].loss / FRAMES
    for out in outs[1:]:
        kl = 0.0
        for row, length in enumerate(lens):
            student = out.terms["ctc"].log_probs[row, :length]
            kl = kl + F.kl_div(student, teacher[row, :length], log_target=True, reduction="sum")
        total = total + 0.3 * out.loss / FRAMES + 0.7 * kl / FRAMES
    total.backward()
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert set(metrics) == {"loss", "loss_2", "loss_1", "loss_sp", "kl_1", "kl_sp"}
    for (name, p), q in zip(trainer.model.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_plain_co_training_has_no_kl():
    metrics = run(setup(lambda2=0.0))
    assert not any(name.startswith("kl") for name in metrics)
    assert metrics["loss"] == pytest.approx(
        metrics["loss_2"] + 0.5 * (metrics["loss_1"] + metrics["loss_sp"]), rel=1e-6
    )


def test_kl_can_rise_from_nothing():
    assert [CoTrainingConfig(lambda2=0.8, kl_warm_step=4).kl_weight(n) for n in (1, 2, 4, 9)] == [0.2, 0.4, 0.8, 0.8]
    assert CoTrainingConfig(lambda2=0.8).kl_weight(1) == 0.8
    metrics = run(setup(lambda2=0.7, kl_warm_step=10), update=5)
    others = 0.5 * (metrics["loss_1"] + metrics["loss_sp"]) + 0.35 * (metrics["kl_1"] + metrics["kl_sp"])
    assert metrics["loss"] == pytest.approx(metrics["loss_2"] + others, rel=1e-6)


def test_branches_and_terms_have_weights_of_their_own():
    weights = {"branch_weights": (("sp", 0.25), ("2", 2.0)), "term_weights": (("ctc", 0.1),)}
    metrics = run(setup(lambda2=0.7, **weights))
    expected = 2.0 * metrics["loss_2"] + 0.5 * metrics["loss_1"] + 0.25 * metrics["loss_sp"]
    expected += 0.7 * (metrics["kl_1"] + metrics["kl_sp"])
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["kl_1"] == pytest.approx(0.1 * run(setup(lambda2=0.7))["kl_1"], rel=1e-5)


def test_float_teacher_is_an_extra_branch():
    trainer = setup(precisions=(32, 2, 1))
    trainer.co_training.config = config = CoTrainingConfig(precisions=("2", "1"), teacher="32")
    assert config.trained_precisions == (32, 2, 1) and config.num_passes == 3
    assert [branch.name for branch in trainer.co_training.branches(1)] == ["32", "2", "1"]
    metrics = run(trainer)
    assert {"loss_32", "kl_2", "kl_1"} <= set(metrics) and "kl_32" not in metrics


def draws_of(co_training: CoTraining) -> list[tuple]:
    return [tuple(sorted(co_training.branches(n)[-1].allocation.bits.items())) for n in range(40)]


def test_stochastic_precision_depends_on_the_update_only():
    config = CoTrainingConfig()
    draws = draws_of(CoTraining(config, 3, "encoder.layers", seed=5))
    assert draws == draws_of(CoTraining(config, 3, "encoder.layers", seed=5))
    assert len(set(draws)) > 3
    assert {bits for draw in draws for _, bits in draw} == {1, 2}
    assert draws != draws_of(CoTraining(config, 3, "encoder.layers", seed=6)), "another seed"
    # layers draw independently: some update has unlike layers
    assert any(len({bits for _, bits in draw}) == 2 for draw in draws)


def test_stochastic_precision_draws_from_any_set():
    config = CoTrainingConfig(precisions=("4", "2", "1", "sp"))
    assert {bits for draw in draws_of(CoTraining(config, 8, "layers", 0)) for _, bits in draw} == {4, 2, 1}
    config = CoTrainingConfig(precisions=("4", "2", "1", "sp"), sp_precisions=("4", "1"))
    assert {bits for draw in draws_of(CoTraining(config, 8, "layers", 0)) for _, bits in draw} == {4, 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"precisions": ("2", "x")},
        {"precisions": ("sp",)},
        {"precisions": ("1", "sp")},
        {"students": 3},
        {"precisions": ("1",), "students": 1},
        {"teacher": "64"},
        {"teacher_decay": 1.5},
        {"teacher": "4"},
        {"teacher": "sp"},
        {"lambda2": -1.0},
        {"lambda1": float("nan")},
        {"kl_warm_step": -1},
        {"sp_precisions": ("2",)},
        {"sp_precisions": ("2", "8")},
        {"branch_weights": (("4", 1.0),)},
        {"branch_weights": (("1", -1.0),)},
    ],
)
def test_impossible_branches_are_refused(wrong):
    with pytest.raises(UserError):
        CoTrainingConfig(**wrong)


def names_and_weights(update: int = 1, **config) -> list[tuple]:
    co_training = CoTraining(CoTrainingConfig(**config), 3, "encoder.layers", seed=5)
    return [(b.name, b.is_teacher, b.weight, b.distill_weight) for b in co_training.branches(update)]


def test_a_precision_may_have_two_branches() -> None:
    expected = [("1", True, 1.0, 0.0), ("1.2", False, 0.3, 0.7)]
    assert names_and_weights(precisions=("1", "1"), lambda1=0.3, lambda2=0.7) == expected
    trainer = setup(precisions=(1,), dropout=0.3)
    trainer.co_training.config = config = CoTrainingConfig(precisions=("1", "1"), lambda1=1.0, lambda2=0.4)
    assert config.bits == config.trained_precisions == (1,) and config.num_passes == 2
    metrics = run(trainer)
    assert set(metrics) == {"loss", "loss_1", "loss_1.2", "kl_1.2"} and metrics["kl_1.2"] > 0
    assert names_and_weights(precisions=("32", "32")) == [("32", True, 1.0, 0.0), ("32.2", False, 0.5, 1.0)]


def test_students_are_drawn_anew() -> None:
    config = {"precisions": ("4", "2", "1", "sp"), "students": 1}
    drawn = [tuple(name for name, *_ in names_and_weights(n, **config)) for n in range(60)]
    assert set(drawn) == {("4", "2"), ("4", "1"), ("4", "sp")}
    assert CoTrainingConfig(**config).num_passes == 2 and CoTrainingConfig(**config).trained_precisions == (4, 2, 1)
    assert drawn == [tuple(name for name, *_ in names_and_weights(n, **config)) for n in range(60)]


def test_all_are_students_of_a_teacher_outside() -> None:
    for teacher in ("mean", "folder/float.pt"):
        found = names_and_weights(teacher=teacher, lambda2=0.7)
        assert found == [("2", False, 1.0, 0.7), ("1", False, 0.5, 0.7), ("sp", False, 0.5, 0.7)]
        assert CoTrainingConfig(teacher=teacher).trained_precisions == (2, 1)


def outside(trainer: SimpleNamespace) -> Teacher:
    torch.manual_seed(1)
    return Teacher(make_model(CONFIG), CtcCriterion(), Allocation.uniform(32))


def test_a_teacher_outside_is_compared_with_every_branch() -> None:
    """Against the formula in one graph; the teacher gets no gradient and keeps its statistics."""
    trainer = setup(lambda1=0.3, lambda2=0.7, teacher="float.pt")
    trainer.teacher = outside(trainer)
    before = {name: value.clone() for name, value in trainer.teacher.model.state_dict().items()}
    metrics = run(trainer, update=4)
    reference = setup().model
    log_probs, lens = outside(trainer).model(BATCH.inputs, BATCH.input_lens)
    total = 0.0
    for branch in trainer.co_training.branches(4):
        with use_precision(reference, branch.allocation):
            out = CtcCriterion()(reference, BATCH)
        own = out.terms["ctc"].log_probs
        rows = [(own[n, :length], log_probs[n, :length].detach()) for n, length in enumerate(lens)]
        kl = sum(F.kl_div(student, target, log_target=True, reduction="sum") for student, target in rows)
        total = total + (branch.weight * out.loss + 0.7 * kl) / FRAMES
    total.backward()
    assert {"kl_2", "kl_1", "kl_sp"} <= set(metrics)
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-5)
    for (name, p), q in zip(trainer.model.named_parameters(), reference.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert all(torch.equal(value, before[name]) for name, value in trainer.teacher.model.state_dict().items())


def test_the_mean_teacher_follows() -> None:
    trainer = setup(precisions=(2, 1), teacher="mean", dropout=0.2)
    teacher = MeanTeacher(trainer.model, CtcCriterion(), Allocation.uniform(2), decay=0.75)
    trainer.teacher = teacher
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    first = run(trainer)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.add_(1.0)
    teacher.follow(trainer.model)
    for name, p in teacher.model.named_parameters():
        torch.testing.assert_close(p, start[name] + 0.25, msg=name)
        assert not p.requires_grad
    again = MeanTeacher(setup().model, CtcCriterion(), Allocation.uniform(2), decay=0.75)
    again.load(teacher.state)
    assert all(torch.equal(a, b) for a, b in zip(again.state.values(), teacher.state.values(), strict=True))
    assert first["kl_2"] >= 0 and trainer.model.training
    assert all(p.requires_grad for p in trainer.model.parameters())
