"""What is logged: alphas, share of zeros, flips."""

from __future__ import annotations

import pytest
import torch

from lowbit_k2.quant import QuantConfig, alpha_parameters, quant_statistics, quantize_model, use_precision
from lowbit_k2.quant.switching import find_quantizers, latent_weights


def test_counts_by_hand(make_model) -> None:
    model = make_model()
    quantize_model(model, QuantConfig.preset("paper", precisions=(2, 1), alpha_init="one"))
    first = quant_statistics(model)
    assert not any(name.startswith("flip_rate") for name in first)
    assert first["zero_share_1bit"] == 0.0 and first["alpha_min_1bit"] == first["alpha_max_4bit"] == 1.0
    codes = [q.codes(w, 2) for q, w in latent_weights(model).items() if q.switched]
    share = sum(int((c == 0).sum()) for c in codes) / sum(c.numel() for c in codes)
    assert first["zero_share_2bit"] == pytest.approx(share)

    assert quant_statistics(model)["flip_rate_1bit"] == 0.0
    quantizer = next(q for q in find_quantizers(model) if q.switched)
    latent = latent_weights(model)[quantizer]
    with torch.no_grad():
        latent[0].neg_()
        quantizer.alphas["1"].fill_(-0.25)
        quantizer.alphas["1"].neg_()
    moved = quant_statistics(model)
    assert moved["flip_rate_1bit"] == pytest.approx(latent.shape[1] / sum(c.numel() for c in codes))
    assert moved["alpha_min_1bit"] == 0.25


def test_statistics_leave_the_model_alone(make_model) -> None:
    model = make_model()
    quantize_model(model, QuantConfig.preset("lossless16"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with use_precision(model, 1):
        inside = quant_statistics(model)
    assert set(inside) < set(quant_statistics(model)) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_alphas_are_parameters_of_the_model(make_model) -> None:
    model = make_model()
    quantize_model(model, QuantConfig.preset("paper", precisions=(2, 1)))
    alphas = alpha_parameters(model)
    assert len(alphas) == 3 * (9 * 2 + 3)  # per layer: 4 feed-forward, 5 attention, switched; 3 convolution, fixed
    mine = {id(p) for p in model.parameters()}
    assert all(alpha.shape == () and id(alpha) in mine for alpha in alphas)


def test_float_model_has_nothing_to_report(make_model) -> None:
    model = make_model()
    quantize_model(model, QuantConfig.preset("float"))
    assert quant_statistics(model) == {} and alpha_parameters(model) == []
