"""Sensitivities against what they are defined as, and the choice against all choices."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lowbit_k2.allocation.choose import choose, evaluate, front
from lowbit_k2.allocation.sensitivity import (
    Sensitivity,
    curvature,
    groups_of,
    layer_divergence,
    model_checksum,
    output_divergence,
    sizes_of,
)
from lowbit_k2.core.config import ConfigError
from lowbit_k2.data.batch import Batch
from lowbit_k2.errors import UserError
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.losses.output import PassOutput
from lowbit_k2.models import CtcConfig, make_model
from lowbit_k2.quant import Allocation, QuantConfig, quantize_model, use_precision

SIZES = {"num_features": 12, "d_model": 8, "num_layers": 2, "num_heads": 2, "ffn_dim": 12, "subsampling_channels": 2}
BITS = (8, 4, 2, 1)
LENS = torch.tensor([60, 41])
BATCH = Batch(
    torch.randn(2, 60, 12, generator=torch.Generator().manual_seed(3)), LENS, ["", ""], ["a", "b"], [[1, 2], [3]]
)


def quantized(kind: str = "mixed") -> tuple[torch.nn.Module, object]:
    torch.manual_seed(0)
    config = CtcConfig.preset("demo", vocab_size=6, conv_kernel=3, dropout=0.0, **SIZES)
    model = make_model(config).eval()
    return model, quantize_model(model, QuantConfig.preset(kind, precisions=BITS))


def test_every_matrix_is_in_one_group() -> None:
    model, report = quantized()
    tensors = groups_of(model)
    matrices = {row.name for row in report.rows if len(row.shape) > 1}
    assert set(tensors) == {name for own in tensors.values() for name in own}
    assert {row.name for row in report.rows if row.switched} == set(tensors) <= matrices
    layers = groups_of(model, "layer")
    assert list(layers) == ["encoder", "encoder.layers.0", "encoder.layers.1", "ctc_head"]
    assert sorted(name for own in layers.values() for name in own) == sorted(tensors)
    size, fixed = sizes_of(report, tensors, BITS)
    for bits in BITS:
        assert fixed + sum(own[bits] for own in size.values()) == report.bytes_at(bits)
    with pytest.raises(UserError, match="no tensor of the model can be switched"):
        groups_of(torch.nn.Linear(2, 2))


def test_kl_of_the_output_by_its_definition() -> None:
    model, _ = quantized()
    names = ("encoder.layers.1.ff1.w2.weight", "encoder.layers.0.conv.pointwise1.weight", "ctc_head.weight")
    groups = {name: own for name, own in groups_of(model).items() if name in names}
    found = output_divergence(model, CtcCriterion(), [BATCH, BATCH], groups, (4, 1))

    def posteriors(allocation: Allocation | int) -> torch.Tensor:
        with torch.no_grad(), use_precision(model, allocation):
            return model(BATCH.inputs, BATCH.input_lens)[0]

    reference, lens = posteriors(32), model.config.output_lens(LENS)
    for group, own in found.items():
        for bits, value in own.items():
            other = posteriors(Allocation({"": 32, group: bits}))
            total = sum(
                F.kl_div(other[n, :length], reference[n, :length], log_target=True, reduction="sum")
                for n, length in enumerate(lens)
            )
            assert value == pytest.approx(float(total / lens.sum()), rel=1e-3, abs=5e-7)  # float32
        assert own[1] > own[4] > 0


def test_what_layers_put_out_by_its_definition() -> None:
    model, _ = quantized()
    name = "encoder.layers.1.ff1.w2.weight"
    found = layer_divergence(model, [BATCH], {"one": (name,)}, (4, 1))["one"]
    seen: list[torch.Tensor] = []
    layer = model.encoder.layers[1].ff1.w2
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad(), use_precision(model, 32):
        model(BATCH.inputs, BATCH.input_lens)
        handle.remove()
        p = layer(seen[0]).double().sigmoid()  # (N, T, C)
    for bits in (4, 1):
        with torch.no_grad(), use_precision(model, Allocation({"": 32, name: bits})):
            q = layer(seen[0]).double().sigmoid()
        divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        assert found[bits] == pytest.approx(float(divergence.sum()), rel=1e-6) and found[bits] > 0


class Quadratic:
    """loss = x^T W^T D W x summed: a Hessian that is known."""

    def __init__(self, scale: torch.Tensor) -> None:
        self.scale = scale

    def __call__(self, model: torch.nn.Module, batch: Batch, update: int = 0, shared: None = None) -> PassOutput:
        return PassOutput((self.scale[:, None] * model.weight.square()).sum() * 0.5, 1)


def test_curvature_of_a_function_whose_hessian_is_known() -> None:
    torch.manual_seed(1)
    model = torch.nn.Linear(16, 3, bias=False)
    quantize_model(model, QuantConfig.preset("mixed", precisions=BITS))
    scale = torch.tensor([1.0, 2.0, 5.0])
    found = curvature(model, Quadratic(scale), [BATCH], groups_of(model), BITS, probes=3)["weight"]
    trace = 16 * float(scale.sum())
    latent = model.parametrizations.weight.original.detach().clone()
    for bits in BITS:
        with torch.no_grad(), use_precision(model, bits):
            moved = float((model.weight - latent).square().sum())
        assert found[bits] == pytest.approx(0.5 * trace * moved, rel=1e-3)
    assert torch.equal(model.parametrizations.weight.original, latent), "the weights are as they were"
    whole, _ = quantized()
    head = {"head": ("ctc_head.weight",)}
    values = curvature(whole, CtcCriterion(), [BATCH], head, BITS, probes=4)["head"]
    assert values[1] > values[4] > values[8] > 0


def made_up(groups: int, seed: int) -> Sensitivity:
    draw = random.Random(seed)
    names = [f"l{i}.w" for i in range(groups)]
    weights = {name: draw.randrange(50, 4000) for name in names}
    loss = {n: {b: draw.random() * 4.0**-i for i, b in enumerate(BITS[::-1])} for n in names}
    return Sensitivity(
        "kl",
        "x",
        {n: (n,) for n in names},
        loss,
        {n: {b: -(-w * b // 8) for b in BITS} for n, w in weights.items()},
        100,
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    table = made_up(5, seed)
    every = [evaluate(table, dict(zip(table.loss, bits, strict=True))) for bits in itertools.product(BITS, repeat=5)]
    sizes = sorted(choice.size for choice in every)
    for budget in (sizes[0], sizes[100], sizes[500], sizes[-1], sizes[-1] * 3):
        found = choose(table, budget)
        best = min(choice.loss for choice in every if choice.size <= budget)
        assert found.size <= budget and found.loss == pytest.approx(best, rel=1e-6)
        assert found == evaluate(table, found.bits) and found.allocation("a").bits == dict(found.bits)
    with pytest.raises(
        ConfigError, match=f"{sizes[0] - 1:,} bytes cannot be met: the smallest choice takes {sizes[0]:,}"
    ):
        choose(table, sizes[0] - 1)


def test_the_front_has_nothing_that_is_beaten() -> None:
    table = made_up(6, 9)
    found = front(table, 40)
    assert len(found) > 10
    for first, second in itertools.pairwise(found):
        assert first.size < second.size and first.loss > second.loss
    draw = random.Random(0)
    for _ in range(200):
        other = evaluate(table, {group: draw.choice(BITS) for group in table.loss})
        assert choose(table, other.size).loss <= other.loss + 1e-9


def test_ties_and_what_is_forbidden() -> None:
    table = made_up(6, 4)
    budget = sum(own[4] for own in table.size.values()) + 100
    found = choose(table, budget, tied=[["l0", "l1", "l2.w"]], forbidden=[("l3", 1), ("*", 8)])
    assert len({found.bits[f"l{i}.w"] for i in range(3)}) == 1
    assert found.bits["l3.w"] != 1 and 8 not in found.bits.values()
    with pytest.raises(UserError, match="every precision of l5.w is forbidden"):
        choose(table, budget, forbidden=[("l5", b) for b in BITS])
    with pytest.raises(ConfigError, match="cannot be met"):
        choose(table, 200, forbidden=[("*", 1)])


def test_tables_are_files(tmp_path: Path) -> None:
    table = made_up(3, 1)
    table.save(tmp_path / "t.json")
    assert Sensitivity.load(tmp_path / "t.json") == table and table.bits == BITS
    (tmp_path / "bad.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="bad.json is no table of sensitivities"):
        Sensitivity.load(tmp_path / "bad.json")
    broken = replace(table, loss={})
    broken.save(tmp_path / "b.json")
    (tmp_path / "b.json").write_text((tmp_path / "b.json").read_text().replace('"size"', '"sizes"'))
    with pytest.raises(UserError, match="b.json is damaged"):
        Sensitivity.load(tmp_path / "b.json")
    first, second = quantized()[0], quantized()[0]
    assert model_checksum(first) == model_checksum(second)
    with torch.no_grad():
        next(iter(second.parameters())).add_(1e-6)
    assert model_checksum(first) != model_checksum(second)
