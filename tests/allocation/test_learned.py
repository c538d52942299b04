"""Learned precisions: the mixture against plain arithmetic, its gradient, and what is found where it is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lowbit_k2.allocation.learned import LearnedConfig, Mixture, learned_preference
from lowbit_k2.allocation.sensitivity import groups_of, model_checksum, read_weight
from lowbit_k2.core.config import ConfigError
from lowbit_k2.data.batch import Batch
from lowbit_k2.losses.output import PassOutput
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision

BITS = (8, 4, 2, 1)
BATCH = Batch(torch.randn(1, 40, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([40]), [""], ["a"], [[1]])


class Twins(torch.nn.Module):
    """Two layers side by side, of which the loss hardly looks at the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 8, bias=False), torch.nn.Linear(6, 4, bias=False)


class Regression:
    """Squared distance from what the float weights give, the first layer's counting most."""

    def __init__(self, model: Twins) -> None:
        with torch.no_grad(), use_precision(model, 32):
            self.wanted = [layer(BATCH.inputs) for layer in (model.first, model.second)]

    def __call__(self, model: Twins, batch: Batch, update: int = 0, shared: None = None) -> PassOutput:
        errors = [
            F.mse_loss(own(batch.inputs), w) for own, w in zip((model.first, model.second), self.wanted, strict=True)
        ]
        return PassOutput(40 * (100.0 * errors[0] + 0.001 * errors[1]), 40)


@pytest.fixture
def model() -> Twins:
    torch.manual_seed(0)
    twins = Twins()
    quantize_model(twins, QuantConfig.preset("mixed", precisions=BITS))
    return twins.eval()


def test_a_mixture_is_the_mean_of_the_weights_at_each_precision(model: Twins) -> None:
    criterion, members = Regression(model), groups_of(model)
    mixture = Mixture(model, criterion, members, BITS)
    weights = torch.randn(2, 4, generator=torch.Generator().manual_seed(2)).softmax(1).requires_grad_()
    found = mixture.mixed(weights, BATCH)
    total = 0.0
    for number, (layer, scale) in enumerate([(model.first, 100.0), (model.second, 0.001)]):
        name = list(members)[number]
        mean = torch.zeros_like(layer.weight)
        for b, share in zip(BITS, weights[number].detach(), strict=True):
            with torch.no_grad(), use_precision(model, {name: b}):
                mean = mean + share * read_weight(model, name)
        total += scale * F.mse_loss(F.linear(BATCH.inputs, mean), criterion.wanted[number])
    torch.testing.assert_close(found.loss, 40 * total)
    one_hot = torch.eye(4)[[3, 0]]
    with torch.no_grad(), use_precision(model, {list(members)[0]: 1, list(members)[1]: 8}):
        torch.testing.assert_close(mixture.mixed(one_hot, BATCH).loss, criterion(model, BATCH).loss)
    assert mixture.average_bits(one_hot).item() == pytest.approx((48 * 1 + 24 * 8) / 72)
    (gradient,) = torch.autograd.grad(found.loss, weights)
    step = torch.zeros_like(weights)
    step[0, 3] = 1e-3
    with torch.no_grad():
        rise = (mixture.mixed(weights + step, BATCH).loss - mixture.mixed(weights - step, BATCH).loss) / 2e-3
    assert rise.item() == pytest.approx(gradient[0, 3].item(), rel=1e-2)


def test_the_tensor_that_matters_gets_the_bits(model: Twins) -> None:
    before = model_checksum(model)
    search = LearnedConfig(updates=150, beta=0.01)
    found = learned_preference(model, Regression(model), [BATCH], groups_of(model), BITS, search)
    assert min(found["first.weight"], key=found["first.weight"].get) == 8
    assert min(found["second.weight"], key=found["second.weight"].get) == 1
    for own in found.values():
        assert sum(torch.tensor(list(own.values())).neg().exp()).item() == pytest.approx(1.0)
    assert model_checksum(model) == before and all(p.grad is None for p in model.parameters())
    again = learned_preference(model, Regression(model), [BATCH], groups_of(model), BITS, search)
    assert again == found
    costly = LearnedConfig(updates=150, beta=1e4)
    found = learned_preference(model, Regression(model), [BATCH], groups_of(model), BITS, costly)
    assert {min(own, key=own.get) for own in found.values()} == {1}


@pytest.mark.parametrize(("field", "value"), [("updates", 0), ("rate", 0.0), ("beta", -1.0), ("beta", float("nan"))])
def test_wrong_settings(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        LearnedConfig(**{field: value})
