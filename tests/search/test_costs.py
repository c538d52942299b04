"""Costs against models that are really built, and against the report of their quantization."""

from __future__ import annotations

import random

import pytest
import torch

from lowbit_k2.core.models import ModelConfig, TransducerConfig
from lowbit_k2.models import make_model
from lowbit_k2.quant import QuantConfig, quantize_model
from lowbit_k2.search.config import SearchConfig
from lowbit_k2.search.costs import cost_table
from tests.search.toy import CONFORMER, MODELS, TDNNF, space_of

TRANSDUCER = TransducerConfig(CONFORMER.encoder, vocab_size=6, decoder_dim=8, joiner_dim=8)


def choices(num_layers: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[0] * num_layers, [2] * num_layers, *([draw.randrange(3) for _ in range(num_layers)] for _ in range(3))]


@pytest.mark.parametrize("config", [*MODELS, TRANSDUCER], ids=lambda c: f"{c.kind}-{c.encoder.kind}")
def test_parameters_are_those_of_the_models(config: ModelConfig) -> None:
    space = space_of(config)
    costs = cost_table(space, config, QuantConfig.preset("float"), SearchConfig())
    for choice in choices(space.num_layers):
        model = make_model(space.apply(config, choice), for_training=False)
        assert costs.total(choice) == sum(p.numel() for p in model.parameters())
    assert costs.unit == 1e6 and costs.fixed > 0


@pytest.mark.parametrize("config", MODELS, ids=lambda c: c.encoder.kind)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("preset", ["lossless16", "all-low", "paper"])
def test_bytes_are_those_of_the_report(config: ModelConfig, bits: int, preset: str) -> None:
    space = space_of(config)
    quant = QuantConfig.preset(preset, precisions=(bits,))
    costs = cost_table(space, config, quant, SearchConfig(cost="bytes", bits=bits))
    for choice in choices(space.num_layers):
        model = make_model(space.apply(config, choice), for_training=False)
        assert costs.total(choice) == quantize_model(model, quant).bytes_at(bits)
    assert costs.unit == bits / 8 * 1e6


def test_the_penalty_counts_millions() -> None:
    space = space_of(TDNNF)
    costs = cost_table(space, TDNNF, QuantConfig.preset("float"), SearchConfig())
    choice = torch.tensor([0, 2, 1, 0])
    weights = torch.nn.functional.one_hot(choice, 3).float()
    own = costs.total(choice.tolist()) - costs.fixed
    assert float(costs.expected(weights)) == pytest.approx(own / 1e6)
    even = torch.full((4, 3), 1 / 3)
    assert float(costs.expected(even)) == pytest.approx(sum(map(sum, costs.layers)) / 3e6)
    # a bottleneck unit: a row of the factor, a column of the affine map, for two frames each where there is a stride
    assert [row[0] for row in costs.layers] == [2 * 48, 2 * 24, 2 * 48, 2 * 48]
