"""Learned tables against brute force: nearest entries, k-means, gradients, export, and life in a model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.quant import (
    CodebookQuantizer,
    QuantConfig,
    ReportRow,
    TensorScheme,
    alpha_parameters,
    clamp_alphas,
    export_tensors,
    parameter_groups,
    plain_state_dict,
    quant_statistics,
    quantize_model,
    quantizer_parameters,
    use_precision,
)
from lowbit_k2.quant.codebook import cluster, nearest


def scheme(*bits: int) -> TensorScheme:
    return TensorScheme(bits, quantizer="codebook")


def make_model(*bits: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))
    schemes = {"table": scheme(*bits), "linear": TensorScheme(bits, "lsq"), "bias": TensorScheme((16,))}
    rules = (("*bias", "bias"), ("0.*", "table"), ("*", "linear"))
    quantize_model(model, QuantConfig("test", schemes, rules, ("table", "linear")))
    return model


def brute_nearest(weight: Tensor, table: Tensor) -> Tensor:
    return (weight.double().reshape(-1, 1) - table.double()).abs().argmin(1).reshape(weight.shape)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_nearest_entry(bits: int) -> None:
    torch.manual_seed(bits)
    weight, table = torch.randn(7, 30), torch.randn(2**bits)  # in no order, as after training
    codes = nearest(weight, table)
    assert codes.dtype == torch.uint8 and codes.shape == weight.shape
    assert torch.equal(codes.long(), brute_nearest(weight, table))


@pytest.mark.parametrize("size", [2, 4, 16])
def test_kmeans_is_a_fixed_point_of_lloyd(size: int) -> None:
    torch.manual_seed(size)
    weight = torch.cat([torch.randn(500), 3 + 0.1 * torch.randn(300)]).view(20, 40)
    table = cluster(weight, size)
    assert torch.equal(table, table.sort().values) and torch.equal(table, cluster(weight, size))
    codes = brute_nearest(weight, table)
    means = torch.stack([weight[codes == j].double().mean() for j in range(size)])
    torch.testing.assert_close(table.double(), means, atol=2e-2, rtol=0.0)
    even = torch.linspace(weight.min(), weight.max(), size)
    error = (table[codes] - weight).square().mean()
    assert error < 0.9 * (even[brute_nearest(weight, even)] - weight).square().mean()


def test_kmeans_of_odd_weights() -> None:
    assert torch.equal(cluster(torch.zeros(3, 3), 4), torch.zeros(4))
    few = cluster(torch.tensor([[1.0, 2.0, 3.0]]), 8)
    assert torch.equal(few.unique(), torch.tensor([1.0, 2.0, 3.0]))
    large = torch.randn(300, 400)
    torch.testing.assert_close(cluster(large, 2), cluster(large[:150], 2), atol=0.02, rtol=0.0)
    assert cluster(torch.zeros(3, 3, device="meta"), 4).shape == (4,)


@pytest.mark.parametrize("bits", [1, 3])
def test_gradients(bits: int) -> None:
    """Those of W - sg(W) + table[codes], by autograd in float64."""
    torch.manual_seed(0)
    weight = torch.randn(5, 8, requires_grad=True)
    quantizer = CodebookQuantizer(weight.detach(), scheme(bits))
    table = quantizer.tables[str(bits)]
    seed = torch.randn(5, 8)
    value = quantizer(weight)
    value.backward(seed)
    reference, entries = weight.detach().double().requires_grad_(), table.detach().double().requires_grad_()
    written_out = reference - reference.detach() + entries[brute_nearest(weight.detach(), table.detach())]
    written_out.backward(seed.double())
    assert torch.equal(value.detach(), table.detach()[brute_nearest(weight.detach(), table.detach())])
    torch.testing.assert_close(weight.grad.double(), reference.grad)
    torch.testing.assert_close(table.grad.double(), entries.grad, rtol=1e-5, atol=1e-6)


def test_beside_linear_quantizers_in_one_pass() -> None:
    """Each use of the model in a pass is quantized once; gradients are those without a cache."""
    x = torch.randn(5, 12)
    cached, plain = make_model(3, 2), make_model(3, 2)
    for bits in (3, 2, 3):
        with use_precision(cached, bits):
            assert cached[0].weight is cached[0].weight
            (cached(x).sin() + cached(2 * x)).sum().backward()
            cached(x).sum().backward()  # the graph of the first backward is gone
        for part in (0, 2):
            plain[part].parametrizations.weight[0].active_bits = bits
        (plain(x).sin() + plain(2 * x)).sum().backward()
        plain(x).sum().backward()
    for (name, a), b in zip(cached.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_training_lowers_the_loss_and_updates_are_seen() -> None:
    model, x, y = make_model(2, 1), torch.randn(64, 12), torch.randn(64, 4)
    optimizer = torch.optim.Adam(parameter_groups(model, 0.0), lr=0.02)
    start = [p.detach().clone() for p in quantizer_parameters(model)]
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        for bits in (2, 1):
            with use_precision(model, bits):
                loss = (model(x) - y).square().mean()
                loss.backward()
        losses.append(loss.item())
        optimizer.step()
        clamp_alphas(model)
    assert losses[-1] < 0.85 * losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(start, quantizer_parameters(model), strict=True))


def test_export_state_dict_and_copies() -> None:
    model, fresh, x = make_model(3, 2), make_model(3, 2, seed=1), torch.randn(5, 12)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # tables are now out of order
    fresh.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    for bits in (3, 2):
        with use_precision(model, bits), use_precision(fresh, bits), use_precision(twin, bits), torch.no_grad():
            assert torch.equal(model(x), fresh(x)) and torch.equal(model(x), twin(x))
            tensor = next(t for t in export_tensors(model) if t.name == "0.weight")
            assert tensor.codes.dtype == torch.uint8 and tensor.table.shape == (2**bits,) and tensor.step == 1.0
            assert torch.equal(tensor.dequantize(), model[0].weight)
            assert torch.equal(plain_state_dict(model)["0.weight"], model[0].weight)


def test_what_is_learned_and_counted() -> None:
    model = make_model(3, 2)
    assert [p.shape.numel() for p in alpha_parameters(model)] == [1, 1]
    assert sorted(p.numel() for p in quantizer_parameters(model)) == [1, 1, 4, 8]
    groups = {group["name"]: group for group in parameter_groups(model, 0.1)}
    assert [p.numel() for p in groups["tables"]["params"]] == [8, 4] and groups["tables"]["weight_decay"] == 0.0
    first = quant_statistics(model)
    assert {"alpha_min_3bit", "zero_share_2bit"} <= set(first)
    with torch.no_grad():
        model[0].parametrizations.weight.original.mul_(-1.0)
    assert quant_statistics(model)["flip_rate_2bit"] > 0.3


def test_sizes() -> None:
    row = ReportRow("w", "table", (3, 10, 13), (3,), is_index=True)
    assert row.bytes_at(3) == 3 * 49 + 4 + 4 * 8  # ceil(390 / 8) a row, the step, the table
    assert row.bytes_at(32) == 4 * 390
    report = quantize_model(
        nn.Sequential(nn.Linear(16, 4, bias=False)),
        QuantConfig("x", {"linear": scheme(2, 1)}, switched_roles=("linear",)),
    )
    assert report.num_alphas == 6 and report.bytes_at(1) == 4 * 2 + 4 + 8


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_weights_have_frozen_tables(frozen: bool) -> None:
    model = nn.Linear(4, 4).requires_grad_(not frozen)
    quantize_model(model, QuantConfig("x", {"linear": scheme(2)}))
    assert all(p.requires_grad != frozen for p in quantizer_parameters(model))
