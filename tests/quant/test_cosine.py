"""The cosines against the plain formula and its autograd in float64, and what snaps do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.core.grids import code_table
from lowbit_k2.errors import UserError
from lowbit_k2.quant import QuantConfig, TensorScheme, quantize_model, use_precision
from lowbit_k2.quant.cosine import CosinePull, SnappedCodebooks, cosine, cosine_of_table
from lowbit_k2.quant.switching import latent_weights


def plain_cosine(weight: Tensor, values: Tensor) -> Tensor:
    """Region by region: the sum of g / pi |cos(pi (w - m) / g)|, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    values = values.double().sort().values
    for low, high in zip(values[:-1], values[1:], strict=True):
        gap, middle = high - low, (low + high) / 2
        inside = weight[(weight > low) & (weight < high)]
        total = total + (gap / math.pi * (math.pi * (inside - middle) / gap).cos().abs()).sum()
    return total


def expected(weight: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    latent = weight.detach().double().requires_grad_(True)
    value = plain_cosine(latent, values)
    value.backward()
    return value.detach(), latent.grad


def model_of(*schemes: TensorScheme) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 6), nn.Linear(6, 7))
    roles = {str(i): scheme for i, scheme in enumerate(schemes)}
    rules = (("*bias", "bias"), *((f"{i}.*", str(i)) for i in range(len(schemes))))
    quantize_model(model, QuantConfig("test", roles, rules, tuple(roles)))
    return model


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block64"])
def test_on_an_even_grid(bits: int, granularity: str) -> None:
    model = model_of(TensorScheme((bits,), "lsq", granularity))
    [(quantizer, weight)] = latent_weights(model).items()
    value, pull = cosine(quantizer, weight.detach(), bits)
    steps = quantizer.step(weight, bits)
    codes = torch.tensor(code_table(bits), dtype=torch.float64)
    total = 0.0
    for row in range(6):
        for block in (slice(0, 64), slice(64, 70)):
            step = {
                "tensor": lambda: steps,
                "channel": lambda row=row: steps[row],
                "block64": lambda row=row, block=block: steps[row, block.start // 64],
            }[granularity]()
            own, gradient = expected(weight[row, block], codes * step)
            total += float(own)
            torch.testing.assert_close(pull[row, block].double(), gradient, rtol=0.0, atol=2e-4)
    assert float(value) == pytest.approx(total, rel=1e-4) and pull.abs().max() <= 1.0
    assert (pull != 0).float().mean() > 0.2


@pytest.mark.parametrize("size", [2, 4, 32])
def test_on_a_table(size: int) -> None:
    torch.manual_seed(size)
    table, weight = torch.randn(size), torch.randn(11, 13)  # the table in no order
    value, pull = cosine_of_table(weight, table)
    own, gradient = expected(weight, table)
    assert float(value) == pytest.approx(float(own), rel=1e-4)
    torch.testing.assert_close(pull.double(), gradient, rtol=0.0, atol=2e-3)
    assert pull[(weight < table.min()) | (weight > table.max())].count_nonzero() == 0


def test_on_the_values_nothing_pulls() -> None:
    table = torch.tensor([-0.7, -0.1, -0.1, 0.0, 0.4])  # one of them twice
    value, pull = cosine_of_table(table.view(1, -1), table)
    assert value == 0.0 and pull.count_nonzero() == 0
    value, pull = cosine_of_table(torch.tensor([0.3, 0.9, -0.4]), table)
    assert torch.isfinite(value) and pull[0] < 0 and pull[1] == 0 and torch.isfinite(pull).all()


def test_descent_comes_to_the_values() -> None:
    model = model_of(TensorScheme((3,), quantizer="codebook"))
    pull = CosinePull(model, 3)
    [(quantizer, weight)] = latent_weights(model).items()
    terms = []
    for rate in torch.linspace(0.002, 0.0, 200):
        weight.grad = None
        terms.append(pull.add_gradients(5e-4) / 5e-4)
        with torch.no_grad():
            weight -= rate * weight.grad / 5e-4
    assert terms[-1] < 0.05 * terms[0]
    inside = (weight >= quantizer.table(3).min()) & (weight <= quantizer.table(3).max())
    apart = (quantizer.table(3)[quantizer.codes(weight, 3).long()] - weight).abs()
    assert apart[inside].max() < 1e-3


def test_gradients_add_up() -> None:
    model = model_of(TensorScheme((2,), "lsq"), TensorScheme((4,), quantizer="codebook"))
    pull = CosinePull(model, {"0": 2, "1": 4})
    assert [bits for _, _, bits in pull.tensors] == [2, 4]
    total = 0.0
    for quantizer, weight, bits in pull.tensors:
        weight.grad = torch.ones_like(weight)
        total += float(cosine(quantizer, weight.detach(), bits)[0])
    assert pull.add_gradients(0.25) == pytest.approx(0.25 * total)
    for quantizer, weight, bits in pull.tensors:
        torch.testing.assert_close(weight.grad, 1 + 0.25 * cosine(quantizer, weight.detach(), bits)[1])


def test_snaps() -> None:
    model = model_of(TensorScheme((3,), quantizer="codebook"))
    [(quantizer, weight)] = latent_weights(model).items()
    snapped = SnappedCodebooks(model, 3)
    with use_precision(model, 3):
        assert torch.equal(model[0].weight, weight)  # float in training
    with torch.no_grad():
        weight.mul_(3.0)
    snapped.fit()
    assert quantizer.table(3).abs().max() > 0.5 * weight.abs().max()
    with use_precision(model.eval(), 3):
        hard = model[0].weight.clone()
        assert not torch.equal(hard, weight)
        snapped.snap()
        assert torch.equal(weight, hard) and torch.equal(model[0].weight, hard)


def test_frozen_tensors_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.requires_grad_(False)
    quantize_model(model, QuantConfig("test", {"linear": TensorScheme((2,), quantizer="codebook")}))
    assert [quantizer.name for quantizer, _, _ in SnappedCodebooks(model, 2).tensors] == ["0.weight"]
    assert not model[1].parametrizations.weight[0].float_in_training


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CosinePull(model_of(TensorScheme((2,))), 32), "no tensor has 1 to 8 bits: choose another precision"),
        (lambda: SnappedCodebooks(model_of(TensorScheme((2,))), 2), "0.weight: hard snaps need a table"),
    ],
)
def test_refusals_are_one_line(make, words: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)
