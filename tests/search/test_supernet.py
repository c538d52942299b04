"""A masked wide model is the narrow one, in values and gradients; mixtures; draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lowbit_k2.core.models import ModelConfig
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.models import make_model
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision
from lowbit_k2.search.supernet import SampledCriterion, Supernet, draw_choice
from tests.search.toy import CONFORMER, MODELS, TDNNF, inputs_of, leading, narrow_model, space_of, wide_model
from tests.train.toy import toy_batches

CHOICES = [[0, 1, 2, 1], [2, 0, 0, 1], [0, 0, 0, 0], [2, 2, 2, 2]]


def kind(config: ModelConfig) -> str:
    return config.encoder.kind


@pytest.mark.parametrize("config", MODELS, ids=kind)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("training", [True, False])
def test_one_candidate_alone_is_the_narrow_model(config: ModelConfig, choice: list[int], training: bool) -> None:
    choice = choice[: config.num_layers]
    wide = wide_model(config).train(training)
    narrow = narrow_model(wide, choice).train(training)
    assert sum(p.numel() for p in narrow.parameters()) <= sum(p.numel() for p in wide.parameters())
    Supernet(wide, space_of(config)).choose(choice)
    outputs = [model(*inputs_of(config))[0] for model in (wide, narrow)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    for out in outputs:
        out.square().mean().backward()
    widths = space_of(config).widths(choice)
    gradients = {name: p.grad for name, p in wide.named_parameters()}
    for name, parameter in narrow.named_parameters():
        parts = name.split(".")
        own, whole = parameter.grad, gradients[name]
        if parts[:2] == ["encoder", "layers"]:
            whole = leading(whole, ".".join(parts[3:]), own.shape, widths[int(parts[2])])
        torch.testing.assert_close(whole, own, rtol=1e-4, atol=1e-6, msg=name)
    for name, buffer in narrow.named_buffers():
        torch.testing.assert_close(dict(wide.named_buffers())[name], buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", MODELS, ids=kind)
def test_a_one_hot_mixture_is_the_choice(config: ModelConfig) -> None:
    wide, space = wide_model(config).eval(), space_of(config)
    supernet = Supernet(wide, space)
    choice = [1, 0, 2, 1][: config.num_layers]
    supernet.choose(choice)
    chosen = wide(*inputs_of(config))[0]
    supernet.mix(torch.nn.functional.one_hot(torch.tensor(choice), 3).float())
    assert torch.equal(wide(*inputs_of(config))[0], chosen)
    supernet.open()
    plain = make_model(wide.config)
    plain.load_state_dict(wide.state_dict())  # the same names, nothing else
    assert torch.equal(wide(*inputs_of(config))[0], plain.eval()(*inputs_of(config))[0])


def test_mixtures_of_feed_forward_modules_are_the_papers() -> None:
    """sum_i lambda_i phi_i(x): the mask is exact, for nothing but a linear map follows it."""
    wide, space = wide_model(CONFORMER).eval(), space_of(CONFORMER)
    weights = torch.tensor([[0.2, 0.3, 0.5]]).repeat(3, 1)
    module, x = wide.encoder.layers[1].ff1, torch.randn(2, 7, 16)
    expected = 0
    for place, weight in enumerate(weights[1].tolist()):
        expected = expected + weight * narrow_model(wide, [place] * 3).encoder.layers[1].ff1(x)
    Supernet(wide, space).mix(weights)
    torch.testing.assert_close(module(x), expected)


def test_mixtures_of_bottlenecks_are_those_of_what_the_affine_map_gives() -> None:
    """Before the ReLU; the paper mixes behind it."""
    wide, space = wide_model(TDNNF).eval(), space_of(TDNNF)
    weights = torch.tensor([[0.6, 0.1, 0.3]]).repeat(4, 1)
    layer, x = wide.encoder.layers[1], torch.randn(2, 7, 12)  # stride 0
    expected = layer.affine.bias
    for place, weight in enumerate(weights[1].tolist()):
        narrow = narrow_model(wide, [place] * 4).encoder.layers[1]
        expected = expected + weight * (narrow.affine(narrow.factor(x)) - narrow.affine.bias)
    Supernet(wide, space).mix(weights)
    torch.testing.assert_close(layer.affine(layer.factor(x)), expected)


@pytest.mark.parametrize("config", MODELS, ids=kind)
def test_gradients_reach_the_mixture(config: ModelConfig) -> None:
    wide, space = wide_model(config).eval(), space_of(config)
    weights = torch.full((space.num_layers, 3), 1 / 3, requires_grad=True)
    Supernet(wide, space).mix(weights)
    wide(*inputs_of(config))[0].square().mean().backward()
    assert weights.grad.shape == weights.shape and bool((weights.grad.abs().sum(dim=1) > 0).all())


@pytest.mark.parametrize("config", MODELS, ids=kind)
def test_a_quantized_supernet(config: ModelConfig) -> None:
    wide, space = wide_model(config), space_of(config)
    quantize_model(wide, QuantConfig.preset("lossless16", precisions=(4, 1)))
    Supernet(wide, space).choose([0] * space.num_layers)
    for bits in (4, 1, 32):
        with use_precision(wide, bits):
            wide(*inputs_of(config))[0].square().mean().backward()
    unused = [
        p for n, p in wide.named_parameters() if "layers.0" in n and ("w1.p" in n or "factor" in n) and p.dim() > 1
    ]
    assert unused
    for latent in unused:
        rows = latent.grad.abs().sum(dim=1)
        assert bool((rows[: space.candidates[0]] > 0).any()) and not bool(rows[space.candidates[0] :].any())


def test_draws_are_even_and_follow_the_update_alone() -> None:
    space = space_of(TDNNF)
    draws = [draw_choice(space, 7, update) for update in range(1, 601)]
    assert draws[3] == draw_choice(space, 7, 4) and draws != [draw_choice(space, 8, u) for u in range(1, 601)]
    for layer in range(4):
        counts = Counter(draw[layer] for draw in draws)
        assert set(counts) == {0, 1, 2} and min(counts.values()) > 150


def test_passes_are_those_of_the_draw_and_validation_is_of_the_widest() -> None:
    wide, space = wide_model(TDNNF), space_of(TDNNF)
    supernet = Supernet(wide, space)
    criterion = SampledCriterion(CtcCriterion(), supernet, seed=3)
    [batch] = toy_batches(1, count=1)
    batch = replace(batch, targets=[[1, 2], [3]])
    seen = []
    for update in (1, 2, 1):
        criterion(wide.train(), batch, update)
        seen.append(supernet.mask.sum(dim=1).tolist())
    assert seen[0] == list(space.widths(draw_choice(space, 3, 1))) == seen[2] != seen[1]
    before = {name: buffer.clone() for name, buffer in wide.named_buffers()}
    validated = criterion(wide.eval(), batch, 2)
    assert supernet.mask is None and not any(module.training for module in wide.modules())
    assert all(torch.equal(buffer, before[name]) for name, buffer in wide.named_buffers())
    torch.testing.assert_close(validated.loss, CtcCriterion()(wide.train(), batch).loss)  # statistics of the batch
