"""Quantized inputs against float64, and where the hooks are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.errors import UserError
from lowbit_k2.quant import (
    QuantConfig,
    TensorScheme,
    attach_input_quantizers,
    export_tensors,
    plain_state_dict,
    quantize_model,
    use_precision,
)
from lowbit_k2.quant.inputs import input_quantizers, quantize_input


def by_hand(row: list[float], bits: int) -> list[float]:
    """In Python's float64, whose round() takes ties to even."""
    step = max(map(abs, row)) / (1 if bits == 2 else 2 ** (bits - 1) - 1)
    return [round(value / step) * step if step else 0.0 for value in row]


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_rows_by_hand(bits: int) -> None:
    torch.manual_seed(bits)
    x = torch.randn(2, 5, 40) * torch.tensor([1e-3, 1.0, 50.0, 1e4, 0.0]).view(5, 1)
    found = quantize_input(x, bits)
    expected = torch.tensor([[by_hand(row, bits) for row in sample] for sample in x.tolist()], dtype=torch.float64)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_ties_go_to_even_and_extremes_stay() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert quantize_input(x, 8).tolist() == [[127.0, 0.0, 2.0, 2.0, 0.0, -2.0]]
    assert torch.equal(quantize_input(-x, 8), -quantize_input(x, 8))


@pytest.mark.parametrize("shape", [(2, 3, 9), (3, 9)])
def test_convolutions_have_a_step_per_sample(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(3, 4, 2)
    plain = copy.deepcopy(conv)
    attach_input_quantizers(conv, {"weight": 8})
    x = torch.randn(shape)
    samples = x if len(shape) == 3 else x[None]
    rounded = torch.tensor([by_hand(sample.flatten().tolist(), 8) for sample in samples]).view(shape)
    torch.testing.assert_close(conv(x), plain(rounded), rtol=1e-5, atol=1e-6)


def test_the_gradient_passes_unchanged() -> None:
    x = torch.randn(3, 7, requires_grad=True)
    seed = torch.randn(3, 7)
    quantize_input(x, 2).backward(seed)
    assert torch.equal(x.grad, seed)
    with torch.no_grad():
        assert torch.equal(quantize_input(x, 2), quantize_input(x.detach().requires_grad_(), 2))


def w2a8(bits: int = 8) -> QuantConfig:
    return QuantConfig("w2a8", {"linear": TensorScheme((2, 1), input_bits=bits), "bias": TensorScheme((16,))})


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))


def test_a_model_computes_with_rounded_inputs() -> None:
    model, plain, x = make_model(), make_model(), torch.randn(5, 12)
    report = quantize_model(model, w2a8())
    assert {row.name: row.input_bits for row in report.rows}["0.weight"] == 8
    assert " 2/1 in8 " in str(report) and report.to_dict()["tensors"][0]["input_bits"] == 8
    for bits in (2, 1):
        with use_precision(model, bits):
            plain.load_state_dict(plain_state_dict(model))
            expected = plain[2](quantize_input(plain[1](plain[0](quantize_input(x, 8))), 8))
            assert torch.equal(model(x), expected)
            assert not torch.equal(model(x), plain(x))
            assert {t.input_bits for t in export_tensors(model) if t.bits < 16} == {8}
    with use_precision(model, 32):
        assert torch.equal(model(x), make_model()(x)), "32 bypasses inputs, too"
        assert {t.input_bits for t in export_tensors(model)} == {0}


def test_copies_are_bypassed_on_their_own() -> None:
    model, x = make_model(), torch.randn(5, 12)
    quantize_model(model, w2a8(2))
    twin = copy.deepcopy(model)
    assert input_quantizers(twin[0])[0].quantizer is twin[0].parametrizations.weight[0]
    before = model(x)
    with use_precision(twin, 32):
        assert torch.equal(twin(x), make_model()(x)) and torch.equal(model(x), before)
    assert torch.equal(twin(x), before)


def test_training_lowers_the_loss() -> None:
    model, x, y = make_model(), torch.randn(64, 12), torch.randn(64, 4)
    quantize_model(model, w2a8())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        with use_precision(model, 2):
            loss = (model(x) - y).square().mean()
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_tied_and_shared_weights() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(6, 4), "out": nn.Linear(4, 6, bias=False)})
    model["out"].weight = model["table"].weight
    model["again"] = model["out"]
    config = QuantConfig("x", {"embedding": TensorScheme((8,), "lsq", input_bits=8)})
    report = quantize_model(model, config)
    assert report.rows[0].input_bits == 8
    assert len(input_quantizers(model["out"])) == 1 and not input_quantizers(model["table"])
    (tensor,) = export_tensors(model)
    assert tensor.input_bits == 8 and set(tensor.aliases) == {"out.weight", "again.weight"}


def test_inputs_that_stay_float_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.attention = nn.Embedding(6, 4), nn.MultiheadAttention(4, 2)

    scheme = TensorScheme((8,), "lsq", input_bits=8)
    config = QuantConfig("x", {"embedding": scheme, "attention": scheme, "linear": scheme})
    report = quantize_model(Mine(), config)
    assert {row.input_bits for row in report.rows} == {0}
    assert "inputs stay float" in caplog.text and "table.weight" in caplog.text
    with pytest.raises(UserError, match="inputs stay float"):
        quantize_model(Mine(), config, strict=True)


@torch.no_grad()
def test_the_transformers_fast_path_is_left() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    quantize_model(layer, QuantConfig("x", {"linear": TensorScheme((8,), "lsq", input_bits=2)}))
    x = torch.randn(2, 5, 8)
    with torch.enable_grad():
        slow = layer(x)
    torch.testing.assert_close(layer(x), slow.detach())


def call_by_keyword(x: Tensor) -> Tensor:
    model = make_model()
    quantize_model(model, w2a8())
    return model[0](input=x)


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (lambda: call_by_keyword(torch.randn(2, 12)), "first positional"),
        (lambda: attach_input_quantizers(make_model(), {"0.bias": 8}), "0.bias"),
        (lambda: attach_input_quantizers(make_model(), {"1.weight": 8}), "1.weight"),
        (lambda: attach_input_quantizers(make_model(), {"7.weight": 8}), "7.weight"),
        (lambda: attach_input_quantizers(make_model(), {"0.weight": 1}), "not 1"),
    ],
)
def test_refusals(run, word: str) -> None:
    with pytest.raises(UserError, match=word):
        run()
