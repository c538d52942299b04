"""The co-training objective against its formula written out, and the draws of stochastic precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lowbit_k2.errors import UserError
from lowbit_k2.losses.co_training import CoTraining, CoTrainingConfig, Posterior, kl_divergence
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.models import ConformerConfig, ConformerCtc
from lowbit_k2.models.subsampling import subsampled_length
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision

CONFIG = ConformerConfig(
    num_features=20,
    vocab_size=7,
    d_model=16,
    num_layers=3,
    ffn_dim=32,
    conv_kernel=5,
    subsampling_channels=4,
    dropout=0.0,
    ffn_dropout=0.0,
)
FEATURES = torch.randn(2, 47, 20, generator=torch.Generator().manual_seed(3))
LENS = torch.tensor([47, 33])
TARGETS = [[1, 2, 2, 3], [6]]


def setup(precisions=(2, 1), **config):
    torch.manual_seed(0)
    model = ConformerCtc(CONFIG).train()
    quant = QuantConfig.preset("paper", precisions=precisions)
    quantize_model(model, quant)
    objective = CoTraining(CoTrainingConfig(**config), quant, CONFIG.num_layers, seed=5)

    def forward(shared=None):
        return CtcCriterion()(model, FEATURES, LENS, TARGETS)

    return model, objective, forward


def num_frames(forward):
    with torch.no_grad():
        return forward().num_frames


def test_gradients_and_metrics_equal_the_formula_in_one_graph():
    """One backward through the whole formula gives what the sequential branches accumulate."""
    frames = num_frames(setup()[2])
    model, objective, forward = setup(lambda1=0.3, lambda2=0.7)
    metrics = objective.backward(model, forward, update=4, num_frames=frames)

    reference, _, plain_forward = setup()
    assignments = [branch.assignment for branch in objective.branches(4)]
    outs = []
    for assignment in assignments:
        with use_precision(reference, assignment):
            outs.append(plain_forward())
    lens = subsampled_length(LENS)
    teacher = outs[0].posteriors[0].log_probs.detach()
    total = outs[0].loss / frames
    for out in outs[1:]:
        kl = 0.0
        for row, length in enumerate(lens):
            student = out.posteriors[0].log_probs[row, :length]
            kl = kl + F.kl_div(student, teacher[row, :length], log_target=True, reduction="sum")
        total = total + 0.3 * out.loss / frames + 0.7 * kl / frames
    total.backward()
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert set(metrics) == {"loss", "loss_2", "loss_1", "loss_sp", "kl_1", "kl_sp"}
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=name)


def posterior(logits, lens):
    return [Posterior.of_frames(logits.log_softmax(-1), torch.tensor(lens))]


def test_kl_is_zero_for_equal_branches_and_blind_to_padding():
    logits = torch.randn(2, 6, 5)
    assert kl_divergence(posterior(logits, [6, 2]), posterior(logits, [6, 2])) == 0
    other = logits.clone()
    other[1, 2:] = torch.randn(4, 5)
    assert kl_divergence(posterior(logits, [6, 2]), posterior(other, [6, 2])) == 0
    assert kl_divergence(posterior(logits, [6, 2]), posterior(torch.randn(2, 6, 5), [6, 2])) > 0


def test_kl_gives_the_teacher_no_gradient():
    teacher = torch.randn(1, 4, 5, requires_grad=True)
    student = torch.randn(1, 4, 5, requires_grad=True)
    kl_divergence(posterior(teacher, [4]), posterior(student, [4])).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_kl_weighs_positions():
    p, q = torch.randn(1, 2, 3, 4).log_softmax(-1), torch.randn(1, 2, 3, 4).log_softmax(-1)
    weights = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
    each = (p.exp() * (p - q)).sum(-1)
    expected = 0.5 * each[0, 0, 0] + 0.5 * each[0, 0, 1] + each[0, 1, 0]
    torch.testing.assert_close(kl_divergence([Posterior(p, weights)], [Posterior(q, weights)]), expected)


def test_plain_co_training_has_no_kl():
    model, objective, forward = setup(precisions=(2, 1), lambda2=0.0)
    metrics = objective.backward(model, forward, 1, num_frames(forward))
    assert not any(name.startswith("kl") for name in metrics)
    assert metrics["loss"] == pytest.approx(
        metrics["loss_2"] + 0.5 * (metrics["loss_1"] + metrics["loss_sp"]), rel=1e-6
    )


def test_kl_can_rise_from_nothing():
    assert [CoTrainingConfig(lambda2=0.8, kl_warm_step=4).kl_weight(n) for n in (1, 2, 4, 9)] == [0.2, 0.4, 0.8, 0.8]
    assert CoTrainingConfig(lambda2=0.8).kl_weight(1) == 0.8
    model, objective, forward = setup(lambda2=0.7, kl_warm_step=10)
    metrics = objective.backward(model, forward, update=5, num_frames=num_frames(forward))
    others = 0.5 * (metrics["loss_1"] + metrics["loss_sp"]) + 0.35 * (metrics["kl_1"] + metrics["kl_sp"])
    assert metrics["loss"] == pytest.approx(metrics["loss_2"] + others, rel=1e-6)


def test_float_teacher_is_an_extra_branch():
    model, objective, forward = setup(precisions=(32, 2, 1))
    objective.config = CoTrainingConfig(precisions=("2", "1"), teacher="32")
    assert objective.config.trained_precisions == (32, 2, 1)
    assert [branch.name for branch in objective.branches(1)] == ["32", "2", "1"]
    metrics = objective.backward(model, forward, 1, num_frames(forward))
    assert {"loss_32", "kl_2", "kl_1"} <= set(metrics) and "kl_32" not in metrics


def test_stochastic_precision_depends_on_the_update_only():
    _, objective, _ = setup()
    draws = [tuple(sorted(objective.branches(n)[-1].assignment.items())) for n in range(40)]
    _, again, _ = setup()
    assert draws == [tuple(sorted(again.branches(n)[-1].assignment.items())) for n in range(40)]
    assert len(set(draws)) > 3
    assert {bits for draw in draws for _, bits in draw} == {1, 2}
    other = CoTraining(objective.config, objective.quant_config, len(draws[0]), objective.seed + 1)
    assert draws != [tuple(sorted(other.branches(n)[-1].assignment.items())) for n in range(40)], "another seed"
    # layers draw independently: some update has unlike layers
    assert any(len({bits for _, bits in draw}) == 2 for draw in draws)


@pytest.mark.parametrize(
    "wrong",
    [
        {"precisions": ("2", "x")},
        {"precisions": ("sp",)},
        {"precisions": ("1", "sp")},
        {"precisions": ("2", "2")},
        {"teacher": "4"},
        {"teacher": "sp"},
        {"lambda2": -1.0},
        {"kl_warm_step": -1},
    ],
)
def test_impossible_branches_are_refused(wrong):
    with pytest.raises(UserError):
        CoTrainingConfig(**wrong)
