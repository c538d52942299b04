"""Assignments: which tensors take which precision, refusals, restoring."""

from __future__ import annotations

import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.quant import (
    Allocation,
    QuantConfig,
    TensorScheme,
    current_assignment,
    quantize_model,
    use_precision,
)

FF = "encoder.layers.{}.ff1.w1.weight"
CONV = "encoder.layers.{}.conv.depthwise.weight"


@pytest.fixture
def config() -> QuantConfig:
    return QuantConfig.preset("lossless16", precisions=(2, 1))


@pytest.fixture
def model(make_model, config):
    model = make_model()
    quantize_model(model, config)
    return model


def test_default_is_the_first_precision(model) -> None:
    active = current_assignment(model)
    assert active[FF.format(0)] == 2 and active[CONV.format(0)] == 4
    assert active["ctc_head.weight"] == 8 and active["ctc_head.bias"] == 16


def test_one_precision_for_all(model) -> None:
    default = current_assignment(model)
    with use_precision(model, 1):
        active = current_assignment(model)
        assert {active[FF.format(i)] for i in range(3)} == {1}
        assert {name: b for name, b in active.items() if b != 1} == {n: b for n, b in default.items() if b != 2}
    assert current_assignment(model) == default


def test_32_bypasses_every_quantizer(model, make_model, features) -> None:
    plain = make_model()
    model.eval(), plain.eval()
    with use_precision(model, 32):
        assert set(current_assignment(model).values()) == {32}
        assert torch.equal(model(features), plain(features))
        with use_precision(model, 1):  # total: also the fixed ones come back
            assert current_assignment(model)[CONV.format(0)] == 4
        assert set(current_assignment(model).values()) == {32}
    assert not torch.allclose(model(features), plain(features))


def test_layers_and_longest_prefix(model, config) -> None:
    with use_precision(model, Allocation.by_layer("encoder.layers", [1, 2, 1])):
        assert [current_assignment(model)[FF.format(i)] for i in range(3)] == [1, 2, 1]
    mixed = {"encoder.layers": 1, "encoder.layers.1": 2, "encoder.layers.1.ff1.w1": 1, "encoder.layers.2": 32}
    with use_precision(model, mixed):
        active = current_assignment(model)
        assert active[FF.format(0)] == active[FF.format(1)] == 1 and active["encoder.layers.1.ff2.w1.weight"] == 2
        assert active[FF.format(2)] == active[CONV.format(2)] == 32 and active[CONV.format(1)] == 4


def test_prefixes_are_whole_components(config) -> None:
    twelve = torch.nn.Module()
    twelve.encoder = torch.nn.Module()
    twelve.encoder.layers = torch.nn.ModuleList(torch.nn.ModuleDict({"ff1": torch.nn.Linear(4, 4)}) for _ in range(12))
    quantize_model(twelve, config)
    with use_precision(twelve, {"encoder.layers.1": 1}):
        ones = [name for name, bits in current_assignment(twelve).items() if bits == 1]
    assert ones == ["encoder.layers.1.ff1.weight"]


def test_uncovered_tensors_keep_the_outer_assignment(model) -> None:
    with use_precision(model, 1):
        with use_precision(model, {"encoder.layers.0": 2}):
            assert [current_assignment(model)[FF.format(i)] for i in range(3)] == [2, 1, 1]
        with use_precision(model, {}):
            assert current_assignment(model)[FF.format(0)] == 1
        assert current_assignment(model)[FF.format(0)] == 1


def test_restored_after_an_exception(model) -> None:
    default = current_assignment(model)
    with pytest.raises(RuntimeError), use_precision(model, 1):
        raise RuntimeError
    assert current_assignment(model) == default


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        (4, "precision 4 is not available in the model: choose one of 2, 1, 32"),
        ({"encoder.layers.0": 8}, "precision 8 is not available in encoder.layers.0: choose one of 2, 1, 32"),
        ({"ctc_head": 1}, "precision 1 is not available in ctc_head: choose one of 8, 16, 32"),
        (
            {"encoder.layer": 1},
            "no quantized tensor has a name that starts with 'encoder.layer': the rules and schemes of the config say "
            "which are quantized, its layer_prefix what layers are called",
        ),
    ],
)
def test_refusals(model, assignment, words: str) -> None:
    default = current_assignment(model)
    with pytest.raises(UserError) as caught, use_precision(model, assignment):
        raise AssertionError("the body must not run")
    assert str(caught.value) == words
    assert current_assignment(model) == default


def test_a_model_trained_at_one_precision(make_model) -> None:
    model = make_model()
    quantize_model(model, QuantConfig.preset("paper", precisions=(1,)))
    with use_precision(model, 1):
        assert current_assignment(model)[FF.format(0)] == 1
    with pytest.raises(UserError, match="choose one of 1, 32"), use_precision(model, 2):
        pass


def test_float_model(make_model) -> None:
    model = make_model()
    quantize_model(model, QuantConfig.preset("float"))
    with use_precision(model, 32):
        assert current_assignment(model) == {}
    with pytest.raises(UserError, match="choose one of 32"), use_precision(model, 2):
        pass


def test_switched_32_is_the_float_teacher(make_model) -> None:
    model = make_model()
    quantize_model(model, QuantConfig("x", {"encoder_linear": TensorScheme((32, 2))}))
    assert current_assignment(model)[FF.format(0)] == 32
    with use_precision(model, 2):
        assert current_assignment(model)[FF.format(0)] == 2


def test_missing_layers(model) -> None:
    with (
        pytest.raises(UserError, match="layer_prefix"),
        use_precision(model, Allocation.by_layer("decoder.blocks", [1])),
    ):
        pass
