"""The quantizer "gq": what it computes, when it overwrites weights, export, and life in a model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.errors import UserError
from lowbit_k2.quant import (
    GeneralQuantization,
    GeneralQuantizer,
    QuantConfig,
    TensorScheme,
    export_tensors,
    parameter_groups,
    quant_statistics,
    quantize_model,
    quantizer_parameters,
    rederive_scales,
    use_precision,
)
from lowbit_k2.quant.general import GQ_SCALES, measure_scale
from lowbit_k2.quant.switching import latent_weights
from tests.quant.test_soft_assignment import plain_table, softmax_average


def make_model(*bits: int, scale: str = "", seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(13, 9), nn.Tanh(), nn.Linear(9, 5))
    schemes = {"all": TensorScheme(bits, scale, quantizer="gq"), "bias": TensorScheme((16,))}
    quantize_model(model, QuantConfig("test", schemes, (("*bias", "bias"), ("*", "all")), ("all",)))
    return model


def quantizers(model: nn.Module) -> dict[GeneralQuantizer, Tensor]:
    return {q: w for q, w in latent_weights(model).items() if isinstance(q, GeneralQuantizer)}


def nearest_entries(weight: Tensor, quantizer: GeneralQuantizer, bits: int) -> Tensor:
    """Brute force in the table that mu and scale say."""
    mu = quantizer.mu[quantizer.bits.index(bits)].item()
    table = torch.tensor(plain_table(mu, bits), dtype=torch.float32) * quantizer.scale
    return table[(weight.double().reshape(-1, 1) - table.double()).abs().argmin(1)].view(weight.shape)


@pytest.mark.parametrize("scale", GQ_SCALES)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_model_codes_and_export_agree(bits: int, scale: str) -> None:
    model = make_model(bits, scale=scale)
    with use_precision(model, bits):
        for quantizer, weight in quantizers(model).items():
            assert torch.equal(quantizer(weight), nearest_entries(weight.detach(), quantizer, bits))
        exported = [tensor for tensor in export_tensors(model) if tensor.codes is not None]
        used = [model[0].weight, model[2].weight]
    assert [tensor.bits for tensor in exported] == [bits, bits]
    for tensor, value in zip(exported, used, strict=True):
        assert tensor.codes.dtype == torch.uint8 and len(tensor.table) == 2**bits
        assert torch.equal(tensor.dequantize(), value)


def test_scales() -> None:
    weight = torch.tensor([[0.3, -0.6], [0.1, 0.0]])
    assert measure_scale(weight, "none") == 1.0
    assert measure_scale(weight, "absmax") == torch.tensor(0.6)
    assert measure_scale(weight, "power-of-two") == 1.0
    for power in (2.0**-9, 0.25, 1.0, 64.0):
        assert measure_scale(power * torch.tensor([1.0, -1.0]), "power-of-two") == power
        assert measure_scale(power * torch.tensor([1.001, -1.0]), "power-of-two") == 2 * power
    assert 0 < measure_scale(torch.zeros(2, 2), "power-of-two") < 1e-7
    assert all(measure_scale(torch.zeros(2, device="meta"), kind).shape == () for kind in GQ_SCALES)


@pytest.mark.parametrize("scale", GQ_SCALES)
def test_an_application_overwrites_by_the_soft_values(scale: str) -> None:
    model = make_model(4, scale=scale)
    before = {quantizer: weight.detach().clone() for quantizer, weight in quantizers(model).items()}
    general = GeneralQuantization(model, [4])
    moved = general.apply(30.0)
    apart = whole = 0.0
    for quantizer, weight in quantizers(model).items():
        assert torch.equal(quantizer.scale, measure_scale(before[quantizer], scale))
        table = torch.tensor(plain_table(quantizer.mu.item(), 4), dtype=torch.float64)
        expected = softmax_average(before[quantizer] / quantizer.scale, table, 30.0) * quantizer.scale
        torch.testing.assert_close(weight.detach().double(), expected, rtol=0.0, atol=1e-6)
        apart += float((expected - before[quantizer]).square().sum())
        whole += float(before[quantizer].double().square().sum())
    assert moved == pytest.approx((apart / whole) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("scale", GQ_SCALES)
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_the_last_application_is_hard(bits: int, scale: str) -> None:
    model = make_model(bits, scale=scale)
    general = GeneralQuantization(model, [bits])
    general.apply(100.0)
    general.apply(None)
    with use_precision(model.eval(), bits):
        for quantizer, weight in quantizers(model).items():
            assert torch.equal(quantizer(weight), weight)
            assert len(weight.unique()) <= 2**bits


def test_with_one_precision_training_is_float_and_evaluation_hard() -> None:
    model = make_model(3)
    plain = nn.Sequential(nn.Linear(13, 9), nn.Tanh(), nn.Linear(9, 5))
    plain.load_state_dict({n: p.half().float() if "bias" in n else p for n, p in _latent_state(model).items()})
    GeneralQuantization(model, [3])
    x = torch.randn(4, 13)
    with use_precision(model, 3):
        assert torch.equal(model(x), plain(x))
        model.eval()
        assert not torch.equal(model(x), plain(x))
        assert torch.equal(model[0].weight, nearest_entries(plain[0].weight.detach(), *_first(model), 3))


def _latent_state(model: nn.Module) -> dict[str, Tensor]:
    return {q.name: w.detach() for q, w in latent_weights(model).items()}


def _first(model: nn.Module) -> list[GeneralQuantizer]:
    return [next(iter(quantizers(model)))]


def test_branches_at_several_precisions_see_soft_values() -> None:
    model = make_model(4, 2)
    general = GeneralQuantization(model, [4, 2])
    before = {quantizer: weight.detach().clone() for quantizer, weight in quantizers(model).items()}
    general.apply(20.0)
    general.set_alpha(25.0)
    for place, bits in enumerate((4, 2)):
        with use_precision(model, bits):
            for quantizer, weight in quantizers(model).items():
                assert torch.equal(weight, before[quantizer])
                table = torch.tensor(plain_table(quantizer.mu[place].item(), bits), dtype=torch.float64)
                value = quantizer(weight)
                expected = softmax_average(weight.detach(), table, 25.0)
                torch.testing.assert_close(value.detach().double(), expected, rtol=0.0, atol=1e-6)
                factor = torch.randn_like(weight)
                weight.grad = None
                (value * factor).sum().backward()
                assert torch.equal(weight.grad, factor)  # straight through
    model.eval()
    with use_precision(model, 2):
        for quantizer, weight in quantizers(model).items():
            assert torch.equal(quantizer(weight), nearest_entries(weight.detach(), quantizer, 2))


def test_without_an_application_training_goes_straight_through_the_table() -> None:
    model = make_model(2)
    for quantizer, weight in quantizers(model).items():
        factor = torch.randn_like(weight)
        value = quantizer(weight)
        (value * factor).sum().backward()
        assert torch.equal(value.detach(), nearest_entries(weight.detach(), quantizer, 2))
        assert torch.equal(weight.grad, factor)


def test_starts_at_the_least_error() -> None:
    model = make_model(4, scale="absmax")
    for quantizer, weight in quantizers(model).items():
        own = (quantizer(weight) - weight).norm()
        quantizer.mu.fill_(8.0)
        assert own <= (quantizer(weight) - weight).norm()


def test_weights_on_their_tables_keep_them() -> None:
    """What a finished training has left is not chosen anew; the mean of several checkpoints is."""
    model = make_model(4, scale="absmax")
    GeneralQuantization(model, [4]).apply(None)
    before = copy.deepcopy(model.state_dict())
    rederive_scales(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for weight in quantizers(model).values():
            weight.mul_(1.7)
    rederive_scales(model)
    for quantizer, weight in quantizers(model).items():
        assert torch.equal(quantizer.scale, weight.detach().abs().max())


def test_state_travels() -> None:
    model, other = make_model(4, 2, scale="power-of-two"), make_model(4, 2, scale="power-of-two", seed=1)
    GeneralQuantization(model, [4, 2]).apply(50.0)
    other.load_state_dict(model.state_dict())
    for a, b in zip(quantizers(model), quantizers(other), strict=True):
        assert torch.equal(a.mu, b.mu) and torch.equal(a.scale, b.scale) and torch.equal(a.table(2), b.table(2))
    assert quantizer_parameters(model) == [] and len(parameter_groups(model, 0.1)) == 2
    assert "flip_rate_2bit" in (quant_statistics(model), quant_statistics(model))[1]


def test_frozen_tensors_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight.requires_grad_(False)
    quantize_model(model, QuantConfig("test", {"linear": TensorScheme((2,), quantizer="gq")}))
    frozen, free = model[0].weight.detach().clone(), model[1].weight.detach().clone()
    held = model[0].parametrizations.weight.original.clone()
    GeneralQuantization(model, [2]).apply(None)
    assert torch.equal(model[0].parametrizations.weight.original, held) and torch.equal(model[0].weight, frozen)
    assert torch.equal(model[1].parametrizations.weight.original, free)


def test_presets_take_it() -> None:
    config = QuantConfig.preset("lossless16", (4, 2), quantizer="gq", scale="power-of-two")
    low = {role: scheme for role, scheme in config.schemes.items() if max(scheme.bits) <= 8}
    assert {s.quantizer for s in low.values()} == {"gq"} and {s.granularity for s in low.values()} == {"tensor"}
    assert {s.scale for s in low.values()} == {"power-of-two"} and low["output"].bits == (8,)
    assert config.schemes["norm"].quantizer == "linear" and QuantConfig.from_json(config.to_json()) == config
    mixed = QuantConfig.preset("mixed", (8, 4, 3), quantizer="gq")
    assert mixed.schemes["output"].granularity == "tensor" and mixed.schemes["output"].scale == "none"
    table = QuantConfig.preset("all-low", (1,), quantizer="codebook")
    assert table.schemes["convolution"] == TensorScheme((4,), quantizer="codebook")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TensorScheme((4,), "lsq", quantizer="gq"), "'lsq' is unknown: choose one of none, power-of-two, abs"),
        (lambda: TensorScheme((4,), "absmax"), "'absmax' is unknown: choose one of 2std-clipped"),
        (lambda: TensorScheme((9,), quantizer="gq"), "bits (9,)"),
        (lambda: TensorScheme((0,), quantizer="gq"), "bits (0,)"),
        (lambda: TensorScheme((4,), granularity="channel", quantizer="gq"), "granularity of gq 'channel' is unknown"),
        (lambda: GeneralQuantization(nn.Linear(2, 2), [4]), "precision 4 is not available in the model"),
        (lambda: GeneralQuantization(make_model(4), [32]), "no tensor of 1 to 8 bits has the quantizer gq"),
        (lambda: GeneralQuantization(make_model(4), [5]), "5"),
    ],
)
def test_refusals_are_one_line(make, words: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)
