"""ADMM against its equations, written out in numpy on a problem whose gradient is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.allocation.admm import AdmmStepsConfig, extra_gradient_step, quantize_by_admm
from lowbit_k2.core.config import ConfigError
from lowbit_k2.data.batch import Batch
from lowbit_k2.errors import UserError
from lowbit_k2.losses.output import PassOutput
from lowbit_k2.quant import Allocation, QuantConfig, TensorScheme, export_tensors, quantize_model, use_precision
from lowbit_k2.quant.admm import Admm, with_fitted_steps
from lowbit_k2.quant.least_squares import nearest_steps
from lowbit_k2.quant.scales import SMALLEST_SCALE
from lowbit_k2.quant.switching import latent_weights

BITS = (1, 2, 4, 8)
GRANULARITIES = ("tensor", "channel")
ROWS, COLUMNS = 5, 24
QUICK = AdmmStepsConfig(gamma=10.0, eta1=0.02, eta2=0.05, outer=60)


# --- the equations --------------------------------------------------------------------------------------------


def table_of(bits: int) -> np.ndarray:
    return np.array([-1.0, 1.0]) if bits == 1 else np.arange(-max(1, 2 ** (bits - 1) - 1), max(2, 2 ** (bits - 1)))


def fit(x: np.ndarray, alpha: np.ndarray, bits: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, f): alpha of shape (), or (rows, 1) for a table per row."""
    table = table_of(bits).astype(float)

    def nearest(alpha: np.ndarray) -> np.ndarray:
        return table[np.abs(x[..., None] - alpha[..., None] * table).argmin(-1)]

    axis = None if alpha.ndim == 0 else 1
    for _ in range(rounds):
        codes = nearest(alpha)
        alpha = (x * codes).sum(axis, keepdims=axis is not None) / (codes**2).sum(axis, keepdims=axis is not None)
    return alpha, alpha * nearest(alpha)


def written_out(
    problem: LeastSquares, start: np.ndarray, bias: np.ndarray, alpha: np.ndarray, bits: int, config: AdmmStepsConfig
) -> tuple[np.ndarray, np.ndarray, list[tuple[float, float]]]:
    """Weights on their table, bias, and (loss, residual) of each outer iteration."""
    theta, lam = start.copy(), np.zeros_like(start)
    alpha, target = fit(theta, alpha, bits, config.inner)
    own = fit(theta, alpha, bits, config.inner)[0]
    history = []
    for _ in range(config.outer):
        losses = []
        for x, y in problem.pairs:

            def gradient(theta: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                error = x @ theta.T + bias - y  # noqa: B023 (called at once)
                pull = config.gamma * (theta - target + lam)  # noqa: B023
                return error.T @ x / len(x) + pull, error.mean(0)  # noqa: B023

            losses.append(0.5 * ((x @ theta.T + bias - y) ** 2).sum() / len(x))
            first, second = gradient(theta, bias)
            first, second = gradient(theta - config.eta1 * first, bias - config.eta1 * second)
            theta, bias = theta - config.eta2 * first, bias - config.eta2 * second
        alpha, target = fit(theta + lam, alpha, bits, config.inner)
        own = fit(theta, own, bits, config.inner)[0]
        lam = lam + theta - target
        history.append((np.mean(losses), np.linalg.norm(theta - target) / np.linalg.norm(theta)))
    return fit(theta, own, bits, config.inner)[1], bias, history


class LeastSquares:
    """loss = |W x + b - y|^2 / 2, summed over the rows of a batch."""

    def __init__(self, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        truth = draw.standard_normal((ROWS, COLUMNS)) * np.geomspace(0.1, 0.4, ROWS)[:, None]
        self.pairs = []
        for count in (30, 20):
            x = draw.standard_normal((count, COLUMNS))
            self.pairs.append((x, x @ truth.T + 0.1 * draw.standard_normal((count, ROWS)) + 0.3))

    def __call__(self, model: nn.Module, batch: Batch, update: int = 0, shared: None = None) -> PassOutput:
        loss = 0.5 * (model(batch.inputs) - batch.targets).square().sum()
        return PassOutput(loss, len(batch.inputs))

    @property
    def batches(self) -> list[Batch]:
        return [
            Batch(torch.from_numpy(x), torch.ones(len(x)), [""] * len(x), ["a"] * len(x), torch.from_numpy(y))
            for x, y in self.pairs
        ]


def config_of(bits: Sequence[int], granularity: str, **fields: str) -> QuantConfig:
    schemes = {"linear": TensorScheme(tuple(bits), granularity=granularity, **fields)}
    return QuantConfig("admm", schemes, alpha_init="l2", float_roles=("bias",))


def linear(bits: Sequence[int], granularity: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Linear(COLUMNS, ROWS, dtype=dtype)
    quantize_model(model, with_fitted_steps(config_of(bits, granularity)))
    return model.eval()


def latent_of(model: nn.Module) -> Tensor:
    [weight] = latent_weights(model).values()
    return weight.detach()


# --- tests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 3, 20])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", BITS)
def test_inner_rounds(bits: int, granularity: str, rounds: int) -> None:
    draw = np.random.default_rng(bits)
    x = draw.standard_normal((7, 3, 11)) * np.geomspace(0.02, 3.0, 7)[:, None, None]
    largest = np.abs(x).max((1, 2)) if granularity == "channel" else np.abs(x).max()
    start = np.asarray(0.6 * largest / table_of(bits).max())
    found = nearest_steps(torch.from_numpy(x), torch.from_numpy(start), bits, granularity, rounds)
    rows = start.reshape(-1, 1) if granularity == "channel" else start
    expected, _ = fit(x.reshape(7, 33), rows, bits, rounds)
    assert found.shape == start.shape
    np.testing.assert_allclose(found.numpy(), expected.reshape(start.shape), rtol=1e-6)


def test_groups_of_zeros_keep_their_steps() -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    weight[1] = 0.0
    for bits in BITS:
        found = nearest_steps(weight, torch.full((3,), 0.5), bits, "channel", 20)
        assert found[1] == 0.5 and (found > 0).all()
    assert nearest_steps(torch.full((1, 4), 1e-12), torch.tensor(1e-12), 1, "tensor", 5) == SMALLEST_SCALE


@pytest.mark.parametrize("config", [AdmmStepsConfig(), AdmmStepsConfig(gamma=2.0, eta2=0.03, outer=12, inner=3)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", BITS)
def test_outer_iterations(bits: int, granularity: str, config: AdmmStepsConfig) -> None:
    problem, model = LeastSquares(), linear((bits,), granularity)
    [(quantizer, weight)] = latent_weights(model).items()
    alpha = quantizer.step(weight, bits).numpy()
    start = weight.detach().clone().numpy(), model.bias.detach().clone().numpy()
    expected, bias, history = written_out(
        problem, *start, alpha[:, None] if granularity == "channel" else alpha, bits, config
    )
    found = quantize_by_admm(model, problem, problem.batches, bits, config)
    np.testing.assert_allclose([(each.loss, each.residual) for each in found], history, rtol=1e-5)
    np.testing.assert_allclose(latent_of(model).numpy(), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.bias.detach().numpy(), bias, rtol=1e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", BITS)
def test_weights_come_to_their_tables(bits: int, granularity: str) -> None:
    problem, model = LeastSquares(), linear((8, 4, 2, 1), granularity, torch.float32)
    batches = [replace(b, inputs=b.inputs.float(), targets=b.targets.float()) for b in problem.batches]
    steps: list[int] = []
    history = quantize_by_admm(model, problem, batches, Allocation.uniform(bits), QUICK, lambda: steps.append(1))
    assert len(history) == len(steps) == QUICK.outer
    assert history[-1].residual < 0.01
    assert bits == 8 or history[-1].residual < 0.2 * history[0].residual  # of 8 bits' tables all is near from the start
    weight = latent_of(model)
    with use_precision(model, bits):
        assert torch.equal(model.weight, weight), "the model computes with the weights themselves"
        exported = next(tensor for tensor in export_tensors(model) if tensor.name == "weight")
    assert torch.equal(exported.dequantize(), weight)
    assert set(exported.codes.unique().tolist()) <= set(table_of(bits).astype(int).tolist())
    assert exported.step.shape == ((ROWS,) if granularity == "channel" else ())


def test_the_loss_is_better_than_that_of_the_nearest_tables() -> None:
    """What the labelled batches are for."""
    problem = LeastSquares(1)

    def loss(model: nn.Module) -> float:
        with torch.no_grad(), use_precision(model, 2):
            return sum(float(problem(model, batch).loss) for batch in problem.batches)

    config = AdmmStepsConfig(gamma=1.0, eta1=0.02, eta2=0.05, outer=200)
    model = linear((2,), "channel")
    with torch.no_grad(), use_precision(model, 32):  # the best float weights
        x, y = (np.concatenate(each) for each in zip(*problem.pairs, strict=True))
        found = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
        latent_of(model).copy_(torch.from_numpy(found[:-1].T))
        model.bias.copy_(torch.from_numpy(found[-1]))
    [(quantizer, weight)] = latent_weights(model).items()
    quantizer.fit(weight.detach())
    at_first = loss(model)
    quantize_by_admm(model, problem, problem.batches, 2, config)
    assert loss(model) < 0.8 * at_first


def test_the_extra_gradient_step() -> None:
    """On |x|^2 / 2: x - eta2 (x - eta1 x)."""
    x = nn.Parameter(torch.tensor([1.0, -2.0]))
    untouched = nn.Parameter(torch.tensor([5.0]))

    def gradients() -> float:
        x.grad = x.detach().clone()
        return 0.5 * float(x.detach().square().sum())

    assert extra_gradient_step([x, untouched], gradients, eta1=0.5, eta2=0.1) == 2.5
    torch.testing.assert_close(x.detach(), torch.tensor([1.0, -2.0]) * (1 - 0.1 * 0.5))
    assert untouched.item() == 5.0


def test_the_added_gradient_is_that_of_the_lagrangian() -> None:
    model = linear((2,), "tensor")
    admm = Admm(model, 2, gamma=0.7, rounds=5)
    [tensor] = admm.tensors
    tensor.multiplier.normal_()
    distance = (tensor.weight - tensor.target + tensor.multiplier).square().sum() - tensor.multiplier.square().sum()
    (expected,) = torch.autograd.grad(0.7 / 2 * distance, tensor.weight)
    for _ in range(2):
        admm.add_gradients()
    torch.testing.assert_close(tensor.weight.grad, 2 * expected)


def test_what_it_leaves_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight.requires_grad_(False)
    config = config_of((4, 2), "tensor")
    quantize_model(model, with_fitted_steps(replace(config, schemes={**config.schemes, "bias": TensorScheme((16,))})))
    assert [tensor.quantizer.name for tensor in Admm(model, 2, 1e-3, 1).tensors] == ["1.weight"]


def test_steps_that_are_set() -> None:
    model = linear((8, 4, 1), "channel")
    [(quantizer, weight)] = latent_weights(model).items()
    steps = torch.rand(ROWS, dtype=torch.float64) + 0.1
    quantizer.set_steps(4, steps)
    assert torch.equal(quantizer.step(weight, 4), steps)
    torch.testing.assert_close(quantizer.step(weight, 8) * 127, steps * 7)
    torch.testing.assert_close(quantizer.step(weight, 1), steps * 7)


def test_state_comes_back() -> None:
    first, second = (Admm(linear((2,), "channel"), 2, 1e-3, 5) for _ in range(2))
    first.tensors[0].weight.data.add_(0.1)
    first.iterate()
    saved = {name: tensor.clone() for name, tensor in first.state.items()}
    second.load(saved, "a.pt")
    assert all(torch.equal(saved[name], tensor) for name, tensor in second.state.items())
    with pytest.raises(UserError, match="a.pt holds multipliers of other tensors"):
        second.load({}, "a.pt")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("gamma", 0.0, "gamma must be positive, it is 0.0"),
        ("gamma", -1e-3, "gamma must be positive"),
        ("gamma", float("nan"), "gamma must be a finite number, not nan"),
        ("outer", 0, "outer must be at least 1"),
        ("inner", 0, "inner must be at least 1"),
        ("eta1", 0.0, "eta1 must be positive"),
        ("eta2", float("inf"), "eta2 must be a finite number"),
    ],
)
def test_settings_that_cannot_be(field: str, value: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AdmmStepsConfig(**{field: value})


def test_models_that_cannot_be() -> None:
    with pytest.raises(UserError, match="precision 2 is not available in the model.* none of its weights is quantized"):
        Admm(nn.Linear(3, 3), 2, 1e-3, 1)
    with pytest.raises(UserError, match="precision 3 is not available in the model: choose one of 2, 32"):
        Admm(linear((2,), "tensor"), 3, 1e-3, 1)
    with pytest.raises(UserError, match="ADMM finds no tensor with 1 to 8 bits"):
        Admm(linear((2,), "tensor"), 32, 1e-3, 1)
    with pytest.raises(UserError, match="no quantized tensor has a name that starts with 'encoder'"):
        Admm(linear((2,), "tensor"), Allocation({"encoder": 2}), 1e-3, 1)
    own_steps = nn.Linear(4, 4)
    quantize_model(own_steps, config_of((2,), "tensor"))
    with pytest.raises(UserError, match="weight: its steps are those of 2std-clipped: give its role scale 'fitted'"):
        Admm(own_steps, 2, 1e-3, 1)
    codebook = nn.Linear(4, 4)
    quantize_model(codebook, with_fitted_steps(config_of((2,), "tensor", quantizer="codebook")))
    with pytest.raises(UserError, match="weight: ADMM needs an even grid"):
        Admm(codebook, 2, 1e-3, 1)


def test_numbers_that_are_not_finite() -> None:
    problem = LeastSquares()
    batches = [replace(problem.batches[0], targets=problem.batches[0].targets * float("nan"))]
    with pytest.raises(UserError, match="outer iteration 1 of ADMM gives a loss of nan.* lower --eta1 and --eta2"):
        quantize_by_admm(linear((2,), "tensor"), problem, batches, 2, AdmmStepsConfig())
