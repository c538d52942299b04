"""Elastic and squashed quantizers against formulas in float64; learned grids of inputs from batch to packed file."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.errors import UserError
from lowbit_k2.export import load_packed, save_packed
from lowbit_k2.packed import PackedTensor, read_packed, write_packed
from lowbit_k2.quant import (
    MatrixProduct,
    QuantConfig,
    TensorScheme,
    alpha_parameters,
    attach_learned_inputs,
    current_assignment,
    export_activations,
    parameter_groups,
    plain_state_dict,
    quantize_model,
    squash_penalty,
    use_precision,
)
from lowbit_k2.quant.elastic import ElasticQuantizer, Grid, elastic_quantize
from lowbit_k2.quant.fake_quant import GradientRule
from lowbit_k2.quant.inputs import elastic_inputs
from lowbit_k2.quant.learned_inputs import ElasticInput
from lowbit_k2.quant.squashed import TARGET_STD, SquashedQuantizer

GRIDS = [Grid(bits, non_negative) for bits in (1, 2, 3, 8) for non_negative in (False, True)]
CODES = {1: [-1, 1], 2: [-1, 0, 1], 3: list(range(-3, 4)), 4: list(range(-7, 8)), 8: list(range(-127, 128))}
CLIPPED = GradientRule(weight="clipped")


def codes_of(grid: Grid) -> Tensor:
    """All codes, written out."""
    return torch.tensor(range(2**grid.bits) if grid.non_negative else CODES[grid.bits], dtype=torch.float64)


def straight_through(x: Tensor, alpha: Tensor, beta: Tensor, s: float, grid: Grid) -> Tensor:
    """alpha s (u + sg(nearest code - u)), u clipped: autograd of this is the reference."""
    codes = codes_of(grid)
    u = ((x - beta * s) / (alpha * s)).clamp(codes[0], codes[-1])
    nearest = codes[(u.detach()[..., None] - codes).abs().argmin(-1)]
    return alpha * s * (u + (nearest - u).detach())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("rule", [CLIPPED, GradientRule("chain", "clipped", "lsq"), GradientRule()], ids=str)
def test_values_and_gradients_of_the_formula(grid: Grid, rule: GradientRule) -> None:
    torch.manual_seed(grid.bits)
    s = 0.37
    x = (torch.randn(40, 30, dtype=torch.float64) * s * (1.5 + grid.high / 2)).requires_grad_()
    alpha = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(0.21, dtype=torch.float64, requires_grad=True)
    seed = torch.randn_like(x)
    expected = straight_through(x, alpha, beta, s, grid)
    by_autograd = torch.autograd.grad((expected * seed).sum(), (x, alpha, beta))
    found = elastic_quantize(x, alpha, beta, torch.tensor(s, dtype=torch.float64), grid, rule)
    grad_x, grad_alpha, grad_beta = torch.autograd.grad((found * seed).sum(), (x, alpha, beta))
    torch.testing.assert_close(found, expected)
    factor = 1 / math.sqrt(x.numel() * codes_of(grid)[-1]) if rule.alpha_scale == "lsq" else 1.0
    torch.testing.assert_close(grad_alpha, by_autograd[1] * factor)
    torch.testing.assert_close(grad_beta, by_autograd[2] * factor)
    torch.testing.assert_close(grad_x, by_autograd[0] if rule.weight == "clipped" else seed)
    assert 0 < (by_autograd[0] == 0).double().mean() < 1, "some lie beyond the grid, some on it"


def test_the_papers_gradients_of_one_bit_from_zero_on() -> None:
    """arXiv 2205.13016, equations 8 and 9, for x below, in the lower half, in the upper half, and above."""
    alpha, beta = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 0.5))
    for x, by_alpha, by_beta in ((0.1, 0.0, 0.0), (1.0, -0.25, -1.0), (2.0, 0.25, -1.0), (3.0, 1.0, 0.0)):
        one = torch.ones((), dtype=torch.float64)
        value = elastic_quantize(torch.tensor([x], dtype=torch.float64), alpha, beta, one, Grid(1, True), CLIPPED)
        grads = torch.autograd.grad(value.sum(), (alpha, beta))
        assert [g.item() for g in grads] == pytest.approx([by_alpha, by_beta])
        assert value.item() == (2.0 if x > 1.5 else 0.0)


def test_weights_start_as_bit_has_them() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 30) * 0.05 + 0.02
    quantizer = ElasticQuantizer(weight, TensorScheme((4, 1), quantizer="elastic"))
    expected = torch.where(weight >= weight.mean(), 1.0, -1.0) * weight.abs().mean()
    torch.testing.assert_close(quantizer.quantize(weight, 1), expected)
    torch.testing.assert_close(quantizer.step(weight, 4), 2 * weight.abs().mean() / math.sqrt(7))
    for bits in (4, 1):
        value = quantizer.codes(weight, bits).float() * quantizer.step(weight, bits)
        assert torch.equal(quantizer.quantize(weight, bits), value)


def test_the_first_batch_sets_an_input() -> None:
    torch.manual_seed(1)
    for x in (torch.randn(5, 8), torch.rand(5, 8)):
        grid = ElasticInput((8, 1), GradientRule())
        grid(x, 1)
        for bits in (8, 1):
            top = codes_of(Grid(bits, bool((x >= 0).all())))[-1]
            expected = 2 * x.abs().mean() / math.sqrt(top)
            torch.testing.assert_close(grid.numbers(bits)[0], expected)
        before = grid.numbers(8)
        grid(100 * x, 8)
        assert torch.equal(grid.numbers(8), before)
        again = ElasticInput((8, 1), GradientRule())
        again.load_state_dict(grid.state_dict())
        assert torch.equal(again(3 * x, 8), grid(3 * x, 8)) and torch.equal(again.numbers(8), before)
        for buffer in again.buffers():
            buffer.zero_()  # as who restores what was there before a batch
        again(3 * x, 8)
        torch.testing.assert_close(again.numbers(8)[0], 3 * before[0])


class Attention(nn.Module):
    """Two products, three matrices, and a ReLU in front of the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = (nn.Linear(8, 8) for _ in range(3))
        self.scores, self.context = MatrixProduct(), MatrixProduct()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.scores(self.query(x), self.key(x).transpose(1, 2)).softmax(-1)
        return self.out(self.context(weights, x).relu())


def quantized(name: str, precisions: tuple[int, ...] = (8, 4, 2, 1), **overrides: object) -> Attention:
    torch.manual_seed(0)
    model = Attention()
    quantize_model(model, QuantConfig.preset(name, precisions=precisions, **overrides), strict=True)
    return model


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(3))


def by_hand(model: Attention, bits: int, x: Tensor) -> Tensor:
    """The forward with `straight_through` in float64 wherever the model rounds."""
    grids = {name: grid for name, grid in zip(
        ("query", "key", "out", "scores0", "scores1", "context0", "context1"), elastic_inputs(model), strict=True
    )}  # fmt: skip
    with use_precision(model, bits):
        state = {name: value.double() for name, value in plain_state_dict(model).items()}

    def rounded(name: str, x: Tensor) -> Tensor:
        step, threshold, sign = grids[name].numbers(bits).double()
        return straight_through(x, torch.ones(()).double(), threshold / step, step, Grid(bits, bool(sign)))

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(rounded(name, x), state[f"{name}.weight"], state[f"{name}.bias"])

    x = x.double()
    query, key = linear("query", x), linear("key", x).transpose(1, 2)
    weights = (rounded("scores0", query) @ rounded("scores1", key)).softmax(-1)
    return linear("out", (rounded("context0", weights) @ rounded("context1", x)).relu())


@torch.no_grad()
def test_every_input_is_rounded_where_it_should_be() -> None:
    model = quantized("bit-la")
    plain = Attention()
    plain.load_state_dict(plain_state_dict_of_float(model))
    with use_precision(model, 4):
        model(X)  # sets the grids
    signs = [bool(grid.non_negative) for grid in elastic_inputs(model)]
    assert signs == [False, False, True, False, False, True, False]  # behind ReLU and softmax
    for bits in (8, 4, 2, 1):
        with use_precision(model, bits):
            assert set(current_assignment(model).values()) == {bits, 16}
            torch.testing.assert_close(model(X).double(), by_hand(model, bits, X), rtol=1e-4, atol=1e-5)
    with use_precision(model, 32):
        assert torch.equal(model(X), plain(X))
    with use_precision(model, {"": 8, "context": 1}):
        mixed = current_assignment(model)
        assert mixed["context"] == 1 and mixed["scores"] == mixed["query.weight"] == 8
        assert not torch.equal(model(X), by_hand(model, 8, X).float())


def plain_state_dict_of_float(model: nn.Module) -> dict[str, Tensor]:
    with use_precision(model, 32):
        return plain_state_dict(model)


@pytest.mark.parametrize("name", ["bit-l", "bit-la", "sqwq"])
def test_packed_files_give_the_same_bits(name: str, tmp_path: Path) -> None:
    model = quantized(name)
    optimizer = torch.optim.SGD(parameter_groups(model, 0.0), lr=0.05)
    for bits in (8, 4, 2, 1):  # every scalar of every precision is somewhere else than at its start
        with use_precision(model, bits):
            model(X).square().sum().backward()
    optimizer.step()
    model.eval()
    for bits in (8, 4, 2, 1):
        with use_precision(model, bits), torch.no_grad():
            save_packed(model, tmp_path / "a")
            expected = model(X)
        loaded = load_packed(tmp_path / "a", Attention())
        assert torch.equal(loaded(X), expected)
        with torch.no_grad():
            save_packed(loaded, tmp_path / "again")  # weights are floats there, the grids are what they were
        grids = [t for t in read_packed(tmp_path / "a").tensors if t.role == "activation"]
        again = [t for t in read_packed(tmp_path / "again").tensors if t.role == "activation"]
        assert {t.input_bits for t in grids} == ({bits} if grids else set())
        assert [(t.name, t.values.tolist()) for t in grids] == [(t.name, t.values.tolist()) for t in again]
        assert len(grids) == {"bit-l": 3, "bit-la": 7, "sqwq": 0}[name]
    with use_precision(model, 32):
        save_packed(model, tmp_path / "float")
    assert not any(t.input_bits for t in read_packed(tmp_path / "float").tensors)


def test_training_reaches_every_scalar_and_checkpoints_hold_them() -> None:
    model = quantized("bit-la", (2, 1))
    for bits in (2, 1):
        with use_precision(model, bits):
            model(X).square().sum().backward()
    groups = {group["name"]: group["params"] for group in parameter_groups(model, 0.1)}
    of_inputs = [p for grid in elastic_inputs(model) for p in grid.parameters()]
    assert len(of_inputs) == 7 * 2 * 2 and all(p.grad is not None and torch.isfinite(p.grad) for p in of_inputs)
    assert len(alpha_parameters(model)) == len(groups["alphas"]) == (7 + 3) * 2
    assert {id(p) for p in of_inputs} <= {id(p) for name in ("alphas", "tables") for p in groups[name]}
    twin = quantized("bit-la", (2, 1))
    twin.load_state_dict(model.state_dict())
    copied = copy.deepcopy(model)
    with use_precision(model, 1), use_precision(twin, 1), use_precision(copied, 1):
        assert torch.equal(model(X), twin(X)) and torch.equal(model(X), copied(X))


def test_the_report_lists_activations() -> None:
    model = Attention()
    report = quantize_model(model, QuantConfig.preset("bit-la", precisions=(2, 1)))
    rows = {row.name: row for row in report.activations}
    assert list(rows) == [f"{name}.input_quantizers.{i}" for name, count in
                          (("query", 1), ("key", 1), ("out", 1), ("scores", 2), ("context", 2))
                          for i in range(count)]  # fmt: skip
    assert rows["context.input_quantizers.1"].role == "product" and rows["query.input_quantizers.0"].bits == (2, 1)
    assert report.bytes_at(1) - sum(row.bytes_at(1) for row in report.rows) == 7 * 12
    assert report.bytes_at(32) == sum(row.bytes_at(32) for row in report.rows)
    text = str(report)
    assert "2/1 in same" in text and "activations" in text and len(report.to_dict()["activations"]) == 7
    with pytest.raises(UserError, match=r"query.input_quantizers.0 has no scale as yet: run a batch"):
        export_activations(model)


def test_inputs_may_keep_a_precision_of_their_own() -> None:
    model = quantized("bit-l", (2, 1), input_bits=8)
    model(X)
    assert {t.input_bits for t in export_activations(model)} == {8}
    with use_precision(model, 1):
        assert {t.input_bits for t in export_activations(model)} == {8}


@pytest.mark.parametrize("name", ["bit-l", "bit-la"])
@torch.no_grad()
def test_weights_alone_are_quantized_where_inputs_are_float(name: str) -> None:
    """As a plain copy of the model in which the weights have been replaced computes it."""
    model, plain = quantized(name, (2, 1), input_bits=0), Attention().eval()
    assert not elastic_inputs(model) and not export_activations(model)
    with use_precision(model, 1):
        for part in ("query", "key", "out"):
            own = getattr(model, part)
            getattr(plain, part).load_state_dict({"weight": own.weight, "bias": own.bias})
            assert len(own.weight.abs().unique()) == 1
        torch.testing.assert_close(model(X), plain(X))


REFUSED = [
    (lambda: TensorScheme((2, 1), input_bits="same"), "same bits"),
    (lambda: TensorScheme((2,), input_bits=1), "1 bits are nothing for the input_quantizer dynamic"),
    (lambda: TensorScheme((2,), input_bits=16, input_quantizer="elastic"), "16 bits"),
    (lambda: TensorScheme((2,), input_quantizer="elastic"), "0 bits"),
    (lambda: TensorScheme((2,), input_bits=8, input_quantizer="mine"), "input_quantizer 'mine'"),
    (lambda: TensorScheme((2,), quantizer="squashed", granularity="tensor"), "granularity of squashed 'tensor'"),
    (lambda: quantize_model(Attention(), QuantConfig("x", {"product": TensorScheme((8,), "lsq", input_bits=8)})),
     "scores: products of activations take elastic inputs"),
    (lambda: attach_learned_inputs(Attention(), {"scores.input_quantizers.0": (8, torch.ones(3))}),
     "scores takes no 1"),
    (lambda: attach_learned_inputs(Attention(), {"gone.input_quantizers.0": (8, torch.ones(3))}), "gone takes no 1"),
    (lambda: attach_learned_inputs(Attention(), {"out.input_quantizers.0": (8, torch.zeros(3))}), "no grid"),
    (lambda: squash_penalty(Attention()), "no weight is squashed"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_makes_no_sense_is_one_line(call, text: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert text in str(error.value) and "\n" not in str(error.value)


def test_a_file_with_a_foreign_grid_is_refused(tmp_path: Path) -> None:
    model = quantized("bit-la", (1,))
    model(X)
    save_packed(model, tmp_path / "a")
    packed = read_packed(tmp_path / "a")
    lost = [t for t in packed.tensors if t.name != "context.input_quantizers.1"]
    write_packed(tmp_path / "b", replace(packed, tensors=lost, sizes=None))
    with pytest.raises(UserError, match="context takes no 1 learned inputs"):
        load_packed(tmp_path / "b", Attention())
    odd = PackedTensor.from_values("context.input_quantizers.1", "activation", "float32", X[0, 0].numpy(), input_bits=1)
    write_packed(tmp_path / "b", replace(packed, tensors=[*lost, odd], sizes=None))
    with pytest.raises(UserError, match="no grid of an input"):
        load_packed(tmp_path / "b", Attention())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_squashed_weights_and_gradients_of_the_formula(bits: int) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(6, 5, 4, dtype=torch.float64) * 0.1
    quantizer = SquashedQuantizer(weight, TensorScheme((bits,), quantizer="squashed"))
    unit, gain = weight.std() / TARGET_STD, quantizer.gains[str(bits)]
    weight.requires_grad_()
    with torch.no_grad():
        gain.add_(torch.randn(6))
    squashed = torch.tanh(weight / unit)
    codes = codes_of(Grid(bits))
    table = codes / codes[-1]
    nearest = table[(squashed.detach()[..., None] - table).abs().argmin(-1)]
    expected = gain.double().exp()[:, None, None] * (squashed + (nearest - squashed).detach())
    seed = torch.randn_like(weight)
    by_autograd = torch.autograd.grad((expected * seed).sum(), (weight, gain))
    found = quantizer.quantize(weight, bits)
    grads = torch.autograd.grad((found * seed).sum(), (weight, gain))
    torch.testing.assert_close(found, expected)
    for own, right in zip(grads, by_autograd, strict=True):
        torch.testing.assert_close(own, right)
    assert torch.equal(found, quantizer.codes(weight, bits) * quantizer.step(weight, bits)[:, None, None])


def test_gains_start_at_the_least_squared_error() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 40) * torch.tensor([0.07, 0.1, 0.12, 0.15, 0.0])[:, None]
    for bits in (1, 2, 4):
        quantizer = SquashedQuantizer(weight, TensorScheme((bits,), quantizer="squashed"))
        quantizer.fit(weight)
        gain = quantizer.gains[str(bits)]

        def error(change: float, quantizer=quantizer, gain=gain, bits=bits) -> Tensor:
            with torch.no_grad():
                gain.add_(change)
                found = (quantizer.quantize(weight, bits) - weight).square().sum(1)
                gain.sub_(change)
            return found[:4]

        assert torch.isfinite(gain).all() and (error(0.0) < error(0.01)).all() and (error(0.0) < error(-0.01)).all()


def test_the_penalty_of_squashed_weights() -> None:
    torch.manual_seed(0)
    model = quantized("sqwq", (2, 1))
    latents = [model.query, model.key, model.out]
    starts = [module.parametrizations.weight.original.detach() for module in latents]
    means = sum((w.mean() / w.std() * TARGET_STD) ** 2 for w in starts)
    torch.testing.assert_close(squash_penalty(model), means)  # weights begin with the deviation that it wants
    expected = 0.0
    for module in latents:
        weight = module.parametrizations.weight.original
        unit = weight.std().item() / TARGET_STD
        with torch.no_grad():
            weight.mul_(1.7).add_(0.01)
        values = weight.double().flatten() / unit
        expected += (values.std() - TARGET_STD) ** 2 + values.mean() ** 2
    torch.testing.assert_close(squash_penalty(model).double(), expected.detach(), rtol=1e-4, atol=1e-6)
    squash_penalty(model).backward()
    assert all(module.parametrizations.weight.original.grad.abs().sum() > 0 for module in latents)
