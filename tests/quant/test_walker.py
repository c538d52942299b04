"""quantize_model: every parameter accounted for once, same latents, state_dict and copies in order."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from lowbit_k2.errors import UserError
from lowbit_k2.models.conformer import ConformerConfig, ConformerCtc
from lowbit_k2.quant import QuantConfig, TensorScheme, alpha_parameters, quantize_model, use_precision
from lowbit_k2.quant.walker import plain_parameters

PRESETS = ["float", "paper", "lossless16", "all-low"]
EVERYTHING = (("*", "encoder_linear"),)


def conformer() -> ConformerCtc:
    torch.manual_seed(0)
    return ConformerCtc(ConformerConfig.preset("demo", num_layers=2, d_model=16, ffn_dim=24, vocab_size=11))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("which", ["stand-in", "conformer"])
def test_every_parameter_is_in_the_report_once(which: str, preset: str, make_model) -> None:
    model = make_model() if which == "stand-in" else conformer()
    before = {name: (tuple(p.shape), id(p)) for name, p in model.named_parameters()}
    report = quantize_model(model, QuantConfig.preset(preset))
    assert sorted(row.name for row in report.rows) == sorted(before)
    assert {row.name: row.shape for row in report.rows} == {name: shape for name, (shape, _) in before.items()}
    assert report.num_weights == sum(p.numel() for p in plain(model).values())
    assert {name: id(p) for name, p in plain(model).items()} == {name: i for name, (_, i) in before.items()}
    alphas = alpha_parameters(model)
    assert len(alphas) == report.num_alphas == sum(p.dim() == 0 for p in model.parameters())
    assert len(list(model.parameters())) == len(before) + len(alphas)
    for row in report.rows:
        assert (row.reason is None) == (row.bits != (32,)), row


def plain(model: nn.Module) -> dict[str, nn.Parameter]:
    return {p.name: p.latent for p in plain_parameters(model)}


def test_presets_reach_the_right_tensors() -> None:
    report = quantize_model(conformer(), QuantConfig.preset("lossless16", precisions=(2, 1)))
    bits = {row.name: row.bits for row in report.rows}
    assert not any(row.role == "other" for row in report.rows)
    for name, found in bits.items():
        matrix = not name.endswith("bias") and "norm" not in name and "pos_bias" not in name
        if not matrix:
            assert found == (16,), name
        elif ".conv." in name:
            assert found == (4,), name
        else:
            assert found == ((2, 1) if ".layers." in name else (8,)), name
    low = quantize_model(conformer(), QuantConfig.preset("all-low"))
    assert all(max(row.bits) <= 4 for row in low.rows if len(row.shape) > 1 and row.role != "bias")


def test_every_weight_that_is_used_is_quantized(make_model, features) -> None:
    """All-zero codes in one tensor at a time change the output: nothing reads a latent behind the quantizer."""
    model = make_model().eval()
    quantize_model(model, QuantConfig.preset("all-low"))
    reference = model(features)
    for parameter in plain_parameters(model):
        quantizer, saved = parameter.quantizer, parameter.latent.detach().clone()
        parameter.latent.data.neg_().add_(0.3)
        assert not torch.equal(model(features), reference), parameter.name
        if quantizer.bits != (16,):
            weight = getattr(*parameter.owners[0])
            assert len(weight.unique()) <= 2 * 7 + 1, parameter.name
        parameter.latent.data.copy_(saved)
    assert torch.equal(model(features), reference)


@pytest.mark.parametrize("preset", PRESETS)
def test_state_dict_round_trip_and_deepcopy(preset: str, make_model, features, tmp_path) -> None:
    trained, fresh = make_model(0), make_model(1)
    config = QuantConfig.preset(preset)
    for model in (trained, fresh):
        quantize_model(model, config)
    train_a_little(trained, features)
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", map_location="cpu", weights_only=True))
    twin = copy.deepcopy(trained)
    assert len(alpha_parameters(twin)) == len(alpha_parameters(trained))
    for model in (trained, fresh, twin):
        model.eval()
    for bits in config.switched_precisions:
        outputs = []
        for model in (trained, fresh, twin):
            with use_precision(model, bits), torch.no_grad():
                outputs.append(model(features))
        assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    train_a_little(twin, features)
    with torch.no_grad():
        assert torch.equal(trained.eval()(features), fresh(features))  # the twin's training left it alone


def train_a_little(model: nn.Module, features: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        for bits in (32,) if not alpha_parameters(model) else (2, 1):
            with use_precision(model, bits):
                model(features).square().mean().backward()
        optimizer.step()


def test_shared_tensors_stay_shared() -> None:
    model = nn.ModuleDict({"a": nn.Linear(6, 6, bias=False), "b": nn.Linear(6, 6, bias=False)})
    model["b"].weight = model["a"].weight
    report = quantize_model(model, QuantConfig("x", {"encoder_linear": TensorScheme((2, 1))}, rules=EVERYTHING))
    assert [row.name for row in report.rows] == ["a.weight"]
    assert len(list(model.parameters())) == 3  # the weight and two alphas
    with use_precision(model, 1):
        assert model["a"].weight is model["b"].weight
        assert len(model["a"].weight.unique()) == 2


def test_why_tensors_stay_float(make_model) -> None:
    model = make_model()
    model.extra = nn.Linear(3, 3)
    normed = nn.Linear(4, 4, bias=False)
    model.normed = nn.utils.parametrizations.spectral_norm(normed)
    config = QuantConfig.preset("paper", schemes={"output": TensorScheme((32,))})
    reasons = {row.name: row.reason for row in quantize_model(model, config).rows}
    model_of_its_own = nn.Module()
    model_of_its_own.matrix = nn.Parameter(torch.zeros(3, 3))
    assert quantize_model(model_of_its_own, config).rows[0].reason == "no rule names it"
    assert reasons["extra.weight"] is None
    assert reasons["encoder.norm.weight"] == "paper leaves it float"
    assert reasons["ctc_head.weight"] == "32 bits asked for"
    assert reasons["encoder.layers.0.ff1.w1.weight"] is None
    assert reasons["normed.parametrizations.weight.original"] == "under another parametrization"


def test_refusals(make_model) -> None:
    model = make_model()
    quantize_model(model, QuantConfig.preset("paper"))
    with pytest.raises(UserError, match="already"):
        quantize_model(model, QuantConfig.preset("paper"))
    config = QuantConfig("x", {"encoder_linear": TensorScheme((1,))}, rules=EVERYTHING)
    with pytest.raises(UserError, match="LSTM reads its weights past"):
        quantize_model(nn.LSTM(3, 3), config)
    with pytest.raises(UserError, match="latent weights must be float32"):
        quantize_model(nn.Linear(3, 3).half(), config)


def test_import_needs_neither_k2_nor_lhotse() -> None:
    code = "import sys, lowbit_k2.quant; sys.exit(any(m in sys.modules for m in ('k2', 'lhotse')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
