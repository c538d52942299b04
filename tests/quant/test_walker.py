"""quantize_model: every parameter accounted for once, same latents, state_dict and copies in order."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from lowbit_k2.errors import UserError
from lowbit_k2.models import CtcConfig
from lowbit_k2.models.ctc import CtcModel
from lowbit_k2.quant import (
    DEFAULT_RULES,
    QuantConfig,
    TensorScheme,
    alpha_parameters,
    plain_state_dict,
    quantize_model,
    use_precision,
)
from lowbit_k2.quant.walker import plain_parameters

PRESETS = ["float", "paper", "lossless16", "all-low"]
EVERYTHING = (("*", "encoder_linear"),)


def conformer() -> CtcModel:
    torch.manual_seed(0)
    return CtcModel(CtcConfig.preset("demo", num_layers=2, d_model=16, ffn_dim=24, vocab_size=11))


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
            rows = getattr(*parameter.owners[0]).flatten(1)
            assert all(len(row.unique()) <= 2 * 7 + 1 for row in rows), parameter.name
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


@pytest.mark.parametrize("preset", ["lossless16", "all-low"])
def test_presets_reach_any_model(preset: str) -> None:
    """By the kinds of modules, without a rule of one's own."""
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(9, 8),
            "front": nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
            "trunk": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
            "head": nn.Linear(8, 9),
        }
    )
    report = quantize_model(model, QuantConfig.preset(preset, precisions=(2, 1)), strict=True)
    bits = {row.name: row.bits for row in report.rows}
    assert bits["head.weight"] == bits["trunk.layers.0.self_attn.in_proj_weight"] == (2, 1)
    assert bits["trunk.layers.1.linear2.weight"] == bits["trunk.layers.1.self_attn.out_proj.weight"] == (2, 1)
    assert bits["front.0.weight"] == (4,) and bits["embed.weight"] == ((8,) if preset == "lossless16" else (4,))
    assert all(found == (16,) for name, found in bits.items() if name.endswith("bias") or ".norm" in name)
    x = torch.randn(5, 3, 8)
    with use_precision(model, 1):
        model["head"](model["trunk"](x)).sum().backward()
        assert len(model["trunk"].layers[0].self_attn.in_proj_weight.unique()) == 2
    assert model["trunk"].layers[0].self_attn.parametrizations.in_proj_weight.original.grad is not None


class Overlooked(nn.Module):
    """12 of its weights are known to the rules, 12 are not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3, bias=False)
        self.mixing, self.gain = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(2))


def test_a_warning_names_what_stays_float(caplog: pytest.LogCaptureFixture) -> None:
    config = QuantConfig.preset("lossless16")
    with caplog.at_level(logging.WARNING):
        quantize_model(Overlooked(), config)
    (record,) = caplog.records
    assert record.name == "lowbit_k2.quant.walker" and "\n" not in record.getMessage()
    assert "1 matrices stay float32, 46.2% of all weights: mixing (no rule names it)" in record.getMessage()
    model = Overlooked()
    with pytest.raises(UserError, match="mixing"):
        quantize_model(model, config, strict=True)
    assert not hasattr(model.linear, "parametrizations"), "a refused model is left alone"


def test_float_on_purpose_is_silent(caplog: pytest.LogCaptureFixture, make_model) -> None:
    quiet = [
        (make_model(), QuantConfig.preset("float")),
        (make_model(), QuantConfig.preset("paper")),  # leaves embeddings and the like float by design
        (conformer(), QuantConfig.preset("paper")),
        (Overlooked(), QuantConfig.preset("float")),
        (Overlooked(), QuantConfig.preset("paper", rules=(("mixing", "mix"), *DEFAULT_RULES), float_roles=("mix",))),
        (
            Overlooked(),
            QuantConfig.preset(
                "paper", rules=(("mixing", "mix"), *DEFAULT_RULES), schemes={"mix": TensorScheme((32,))}
            ),
        ),
    ]
    for model, config in quiet:
        quantize_model(model, config, strict=True)
    assert not caplog.records
    typo = QuantConfig("x", {"mixx": TensorScheme((4,))}, rules=(("mixing", "mix"), ("*", "rest")))
    quantize_model(Overlooked(), typo)
    assert "2 matrices stay float32, 92.3%" in caplog.text


def test_recurrent_weights_stay_float_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 3), "head": nn.Linear(3, 2)})
    rows = {row.name: row for row in quantize_model(model, QuantConfig.preset("lossless16")).rows}
    assert rows["rnn.weight_hh_l0"].role == "recurrent" and rows["rnn.bias_hh_l0"].bits == (32,)
    reason = "LSTM reads its weights past quantization, call replace_rnns(model) first"
    assert rows["rnn.weight_hh_l0"].reason == reason
    assert rows["head.weight"].bits == (2, 1) and "rnn.weight_ih_l0" in caplog.text
    with pytest.raises(UserError, match="LSTM reads its weights past"):
        quantize_model(nn.LSTM(3, 3), QuantConfig.preset("paper", schemes={"recurrent": TensorScheme((8,), "lsq")}))


WEIGHT_NORMS = [nn.utils.weight_norm]
if hasattr(nn.utils.parametrizations, "weight_norm"):
    WEIGHT_NORMS.append(nn.utils.parametrizations.weight_norm)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("weight_norm", WEIGHT_NORMS)
def test_weight_norm_old_and_new(weight_norm, caplog: pytest.LogCaptureFixture) -> None:
    model, plain = (nn.Sequential(weight_norm(nn.Conv1d(3, 4, 2)), nn.Flatten(), nn.Linear(8, 2)) for _ in range(2))
    rows = quantize_model(model, QuantConfig.preset("lossless16")).rows
    under = [row for row in rows if row.reason == "under weight_norm"]
    assert sorted(row.shape for row in under) == [(4, 1, 1), (4, 3, 2)] and {row.role for row in under} == {
        "convolution"
    }
    assert "under weight_norm" in caplog.text
    assert {row.name: row.bits for row in rows}["2.weight"] == (2, 1)
    with use_precision(model, 1):
        plain.load_state_dict(plain_state_dict(model))  # strict
        x = torch.randn(5, 3, 3)
        assert torch.equal(plain(x), model(x))


def test_other_parametrizations_keep_their_names(make_model) -> None:
    model, plain = (nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))) for _ in range(2))
    quantize_model(model, QuantConfig.preset("lossless16"))
    plain.load_state_dict(plain_state_dict(model))
    x = torch.randn(2, 4)
    bias = plain[0].bias
    assert torch.equal(model.eval()(x), plain.eval()(x)) and torch.equal(bias, bias.half().float())


def test_import_needs_neither_k2_nor_lhotse() -> None:
    code = "import sys, lowbit_k2.quant; sys.exit(any(m in sys.modules for m in ('k2', 'lhotse')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
