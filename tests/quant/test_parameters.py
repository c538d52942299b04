"""Groups for an optimizer, and alphas held above zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowbit_k2.quant import (
    QuantConfig,
    TensorScheme,
    alpha_parameters,
    clamp_alphas,
    parameter_groups,
    quantize_model,
    quantizer_parameters,
    use_precision,
)
from lowbit_k2.quant.switching import find_quantizers


def test_each_parameter_is_in_one_group(make_model) -> None:
    model = make_model()
    quantize_model(model, QuantConfig.preset("lossless16"))
    groups = parameter_groups(model, 0.1)
    assert [(g["name"], g["weight_decay"]) for g in groups] == [("matrices", 0.1), ("vectors", 0.0), ("alphas", 0.0)]
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters()) and len(set(ids)) == len(ids)
    vectors = {id(p) for n, p in model.named_parameters() if "norm" in n or "bias" in n}
    assert {id(p) for p in groups[1]["params"]} == vectors
    assert [id(p) for p in groups[2]["params"]] == [id(p) for p in alpha_parameters(model)]
    assert {id(p) for p in quantizer_parameters(model)} == {id(p) for p in alpha_parameters(model)}


def test_a_float_model_has_two_groups(make_model) -> None:
    assert [g["name"] for g in parameter_groups(make_model(), 0.1)] == ["matrices", "vectors"]
    assert clamp_alphas(make_model()) == 0


def test_alphas_are_raised_to_the_floor(make_model) -> None:
    model = make_model()
    quantize_model(model, QuantConfig.preset("paper", alpha_init="one"))
    alphas = alpha_parameters(model)
    with torch.no_grad():
        alphas[0].fill_(-0.3)
        alphas[1].fill_(0.02)
        alphas[2].fill_(0.05)
    assert clamp_alphas(model) == 2 and clamp_alphas(model) == 0
    assert [a.item() for a in alphas[:4]] == pytest.approx([0.05, 0.05, 0.05, 1.0])
    assert clamp_alphas(model, floor=0.5) == 3


def test_frozen_layers_keep_their_scales() -> None:
    """No gradient for the alphas, and a running statistic that stands still; the others move."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[0].requires_grad_(False)
    quantize_model(model, QuantConfig("x", {"linear": TensorScheme((4,), "running-absmax")}))
    frozen, trained = find_quantizers(model)
    with torch.no_grad():
        for part in model:
            part.parametrizations.weight.original.mul_(2.0)
    before = [q.statistic.clone() for q in (frozen, trained)]
    with use_precision(model, 4):
        model(torch.randn(3, 6)).sum().backward()
    assert torch.equal(frozen.statistic, before[0]) and not torch.equal(trained.statistic, before[1])
    assert [q.alphas["4"].requires_grad for q in (frozen, trained)] == [False, True]
    assert frozen.alphas["4"].grad is None and trained.alphas["4"].grad is not None
