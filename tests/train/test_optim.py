"""Parameter groups, schedules, clipping."""

from __future__ import annotations

import pytest
import torch

from lowbit_k2.quant import alpha_parameters
from lowbit_k2.train.optim import OptimConfig, clip_gradients, floor_of_alphas, learning_rate, make_optimizer, set_rate
from tests.train.toy import toy_trainer


def test_each_parameter_is_in_one_group_and_alphas_do_not_decay(tmp_path):
    model = toy_trainer(tmp_path).model
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.1))
    groups = {g["name"]: g for g in optimizer.param_groups}
    ids = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters()) and len(set(ids)) == len(ids)
    assert {id(p) for p in groups["alphas"]["params"]} == {id(p) for p in alpha_parameters(model)}
    assert groups["matrices"]["weight_decay"] == 0.1
    assert groups["vectors"]["weight_decay"] == groups["alphas"]["weight_decay"] == 0.0
    vectors = {id(p) for p in groups["vectors"]["params"]}
    assert {id(p) for n, p in model.named_parameters() if "norm" in n or "bias" in n} == vectors


def test_noam_peaks_at_the_end_of_the_warm_up():
    config = OptimConfig(lr_factor=5.0, warm_step=100)
    rates = [learning_rate(config, 256)(n, n / 400) for n in range(1, 400)]
    assert max(rates) == rates[99] == pytest.approx(5.0 / (256 * 100) ** 0.5)
    assert rates[24] == pytest.approx(rates[99] / 4)
    assert rates[398] == pytest.approx(rates[99] * (100 / 399) ** 0.5)


@pytest.mark.parametrize(("name", "half"), [("linear", 0.5), ("cosine", 0.5)])
def test_rates_that_fall_to_zero(name: str, half: float) -> None:
    rate = learning_rate(OptimConfig(lr_factor=5.0, warm_step=100, lr_schedule=name), 256)
    peak = 5.0 / (256 * 100) ** 0.5
    assert rate(50, 0.0) == pytest.approx(peak / 2) and rate(100, 0.0) == pytest.approx(peak)
    assert rate(1000, 0.5) == pytest.approx(half * peak) and rate(2000, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert rate(1000, 0.75) == pytest.approx(peak * (0.25 if name == "linear" else (1 - 0.5**0.5) / 2))


def test_alphas_are_clipped_apart(tmp_path):
    trainer = toy_trainer(tmp_path)
    for p in trainer.model.parameters():
        p.grad = torch.full_like(p, 0.001)
    for alpha in alpha_parameters(trainer.model):
        alpha.grad.fill_(1000.0)
    norms = clip_gradients(trainer.optimizer, 5.0)
    assert norms["grad_norm_alpha"] > 1000 and norms["grad_norm"] < 5
    alphas = {id(p) for p in alpha_parameters(trainer.model)}
    rest = [p for p in trainer.model.parameters() if id(p) not in alphas]
    assert all(torch.all(p.grad == 0.001) for p in rest), "the alphas' norm must not shrink the weights' gradients"
    total = sum(float(a.grad) ** 2 for a in alpha_parameters(trainer.model)) ** 0.5
    assert total == pytest.approx(5.0, rel=1e-3)


def test_alphas_have_their_own_rate_and_stay_positive(tmp_path):
    model = toy_trainer(tmp_path).model
    optimizer = make_optimizer(model, OptimConfig(alpha_lr_scale=0.1))
    set_rate(optimizer, 0.5)
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == {"matrices": 0.5, "vectors": 0.5, "alphas": 0.05}
    alphas = alpha_parameters(model)
    start = float(alphas[2].detach())
    with torch.no_grad():
        alphas[0].fill_(-0.3)
        alphas[1].fill_(0.02)
    hold = floor_of_alphas(model, 0.05)
    assert hold(model, 1) == {"alphas_held": 2.0}
    assert [float(a.detach()) for a in alphas[:3]] == pytest.approx([0.05, 0.05, start])
    assert hold(model, 2) == {"alphas_held": 0.0}
    plain = toy_trainer(tmp_path, ("32",)).model
    assert floor_of_alphas(plain, 0.05)(plain, 1) == {}
