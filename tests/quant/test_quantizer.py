"""The parametrization: once per pass, right under autograd, autocast, two uses, several backwards, copies."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from lowbit_k2.quant import LinearQuantizer, QuantConfig, TensorScheme, quantize_model, use_precision
from lowbit_k2.quant import linear as linear_module
from lowbit_k2.quant import quantizer as quantizer_module
from lowbit_k2.quant.switching import find_quantizers

RULES = (("*bias", "bias"), ("*", "encoder_linear"))


def make_linear(bits=(2, 1), **scheme) -> nn.Linear:
    """Wrapped in a module, so that the linear has a name; returns the container."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9))
    quantize_model(model, QuantConfig("test", {"encoder_linear": TensorScheme(bits, **scheme)}, rules=RULES))
    return model


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Appends the precision of every quantization that is carried out."""
    calls: list[int] = []
    original = linear_module.fake_quantize_all

    def counted(weights, alphas, steps, specs, *args):
        calls.extend(spec.bits for spec in specs if spec.bits < 16)
        return original(weights, alphas, steps, specs, *args)

    monkeypatch.setattr(linear_module, "fake_quantize_all", counted)
    return calls


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_one_quantization_per_pass_and_the_same_gradients(count: list[int]) -> None:
    x = torch.randn(5, 12)
    cached, plain = make_linear(), make_linear()
    for bits in (2, 1, 2):
        with use_precision(cached, bits):
            (cached(x).sin() + cached(2 * x)).sum().backward()  # the module is used twice
    assert count == [2, 1, 2]
    count.clear()
    quantizer = find_quantizers(plain)[0]
    for bits in (2, 1, 2):
        quantizer.active_bits = bits  # no context, no cache
        (plain(x).sin() + plain(2 * x)).sum().backward()
    assert count == [2, 2, 1, 1, 2, 2]
    for a, b in zip(gradients(cached), gradients(plain), strict=True):
        torch.testing.assert_close(a, b)


def test_several_backwards_in_one_context(count: list[int]) -> None:
    model, x = make_linear(), torch.randn(5, 12)
    with use_precision(model, 1):
        for _ in range(3):
            model(x).square().sum().backward()
    assert count == [1, 1, 1]


def test_a_model_is_quantized_once_per_pass(count: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 9), nn.Linear(9, 4))
    config = QuantConfig("test", {"encoder_linear": TensorScheme((2, 1)), "bias": TensorScheme((16,))}, rules=RULES)
    quantize_model(model, config)
    with use_precision(model, {"": 1, "1": 2}):
        assert torch.equal(
            model[2].weight,
            quantizer_module.quantize_together(
                [model[2].parametrizations.weight[0]], [model[2].parametrizations.weight.original]
            )[0],
        )
        count.clear()
        model(torch.randn(5, 12)).sum().backward()
        assert count == [], "the first weight asked for brought all others along"
        model(torch.randn(5, 12)).sum().backward()
        assert count == [1, 2, 1]
    assert all(p.grad is not None for n, p in model.named_parameters() if n.endswith("original"))


def test_a_parametrization_before_the_quantizer() -> None:
    """What the quantizer gets is then not the latent weight that the pass knows."""
    model, x = make_linear(), torch.randn(5, 12)
    owner = model[0].parametrizations.weight
    owner.insert(0, Doubled())
    with use_precision(model, 2):
        weight = model[0].weight
        expected = quantizer_module.quantize_together([owner[1]], [2 * owner.original])[0]
        assert torch.equal(weight, expected)
        model(x).sum().backward()
    assert owner.original.grad is not None


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_an_update_inside_a_context_is_seen() -> None:
    model, x = make_linear(), torch.randn(5, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with use_precision(model, 2), torch.no_grad():
        before = model[0].weight
        assert model[0].weight is before
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        after = model[0].weight
        assert not torch.equal(before, after)
    with use_precision(model, 2):
        assert torch.equal(model(x), nn.functional.linear(x, after, model[0].bias))


def test_no_grad_result_is_not_reused_for_training() -> None:
    model, x = make_linear(), torch.randn(5, 12)
    with use_precision(model, 1):
        with torch.no_grad():
            model(x)
        with torch.inference_mode():
            model(x)
        model(x).sum().backward()
    assert model[0].parametrizations.weight.original.grad is not None


def test_cache_ends_with_the_context(count: list[int]) -> None:
    model = make_linear()
    for _ in range(2):
        with use_precision(model, 1):
            _ = model[0].weight
    assert count == [1, 1]
    assert find_quantizers(model)[0].pass_cache is None


def test_a_pass_leaves_no_memory_behind() -> None:
    """The cache and its hooks form a cycle with the tensors; it is cut on exit, not left to the collector."""
    model, x = make_linear(), torch.randn(5, 12)
    gc.disable()
    try:
        with use_precision(model, 1):
            weight = weakref.ref(model[0].weight)
            model(x)  # no backward, as in a pass that failed
            assert weight() is not None
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("granularity", ["tensor", "block64"])
def test_weights_are_the_same_under_autocast(granularity: str) -> None:
    model = make_linear((4, 1), granularity=granularity)
    x = torch.randn(5, 12)
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with use_precision(model, 4), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            weight = model[0].weight
            output = model(x)
        assert weight.dtype == torch.float32 and output.dtype == (torch.bfloat16 if enabled else torch.float32)
        weight.backward(torch.ones_like(weight))
        results.append((weight, find_quantizers(model)[0].alphas["4"].grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_running_absmax_follows_in_training_only() -> None:
    model = make_linear((4,), scale="running-absmax")
    quantizer = find_quantizers(model)[0]
    latent = model[0].parametrizations.weight.original
    start = latent.detach().abs().max()
    assert torch.equal(quantizer.statistic, start)
    with torch.no_grad():
        latent.mul_(2.0)
    model.eval()
    _ = model[0].weight
    assert torch.equal(quantizer.statistic, start)
    model.train()
    _ = model[0].weight
    torch.testing.assert_close(quantizer.statistic, 0.9 * start + 0.1 * 2 * start)
    expected_step = quantizer.alphas["4"].detach() * quantizer.statistic / 7
    torch.testing.assert_close(quantizer.step(latent, 4), expected_step)


@pytest.mark.parametrize(("scale", "moves"), [("absmean", False), ("lsq", False), ("2std-clipped", True)])
def test_which_scales_move_with_the_weights(scale: str, moves: bool) -> None:
    model = make_linear((2, 1), scale=scale)
    quantizer, latent = find_quantizers(model)[0], model[0].parametrizations.weight.original
    before = quantizer.step(latent, 1)
    with torch.no_grad():
        latent.mul_(0.5)
    assert torch.equal(quantizer.step(latent, 1), before) != moves


def test_deepcopy_in_a_pass_is_independent() -> None:
    model, x = make_linear(), torch.randn(5, 12)
    with use_precision(model, 1):
        out = model(x)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), out)
        assert find_quantizers(twin)[0].pass_cache is None
        with torch.no_grad():
            twin[0].parametrizations.weight.original.neg_()
        assert torch.equal(model(x), out) and not torch.equal(twin(x), out)


def test_repr_names_the_tensor() -> None:
    quantizer = LinearQuantizer(torch.randn(3, 4), TensorScheme((2, 1)), "a.weight")
    assert "a.weight" in repr(quantizer) and "active=2" in repr(quantizer)
