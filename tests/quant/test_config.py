"""Validation, presets, roles and the round trip through JSON."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
from torch import nn

from lowbit_k2.errors import UserError
from lowbit_k2.quant import QuantConfig, TensorScheme

PRESETS = ["float", "paper", "lossless16", "all-low"]


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name: str) -> None:
    config = QuantConfig.preset(name, precisions=(2, 1), alpha_grad="authors", scale="lsq", granularity="block64")
    assert QuantConfig.from_json(config.to_json()) == config
    assert QuantConfig.from_dict(config.to_dict()) == config


def test_presets_hold_what_they_say() -> None:
    paper = QuantConfig.preset("paper").schemes
    assert set(paper) == {"encoder_linear", "attention", "feed_forward", "lstm", "linear", "convolution"}
    assert paper["encoder_linear"] == paper["attention"] == TensorScheme((2, 1), "2std-clipped", "tensor")
    assert paper["convolution"] == TensorScheme((4,), "running-absmax")
    lossless = QuantConfig.preset("lossless16").schemes
    assert lossless["output"].bits == lossless["subsampling"].bits == (8,)
    assert lossless["norm"].bits == lossless["bias"].bits == (16,)
    low = QuantConfig.preset("all-low").schemes
    assert all(max(low[role].bits) <= 4 for role in set(low) - {"norm", "bias"})
    assert QuantConfig.preset("float").schemes == {}


def test_precisions_and_overrides() -> None:
    config = QuantConfig.preset(
        "paper", (4, 2, 1), scale="lsq", granularity="channel", schemes={"output": TensorScheme((8,), "lsq")}
    )
    assert config.switched_precisions == (4, 2, 1)
    assert config.schemes["attention"] == TensorScheme((4, 2, 1), "lsq", "channel")
    assert config.schemes["output"].bits == (8,)
    assert QuantConfig.preset("paper", (1,)).switched_precisions == (1,)
    assert QuantConfig.preset("float").switched_precisions == (32,)


def test_configs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        QuantConfig.preset("paper").name = "mine"


NAMES = {
    "encoder.subsampling.conv1.weight": "subsampling",
    "encoder.subsampling.out.bias": "bias",
    "encoder.layers.11.ff1.w1.weight": "encoder_linear",
    "encoder.layers.11.ff2.w2.bias": "bias",
    "encoder.layers.0.attention.query.weight": "attention",
    "encoder.layers.0.attention.pos.weight": "attention",
    "encoder.layers.0.attention.pos_bias_u": "bias",
    "encoder.layers.0.attention.pos_bias_v": "bias",
    "encoder.layers.0.conv.depthwise.weight": "convolution",
    "encoder.layers.0.conv.pointwise1.bias": "bias",
    "encoder.layers.0.conv.norm.weight": "norm",
    "encoder.layers.0.norm_ff1.weight": "norm",
    "encoder.layers.0.norm_out.bias": "norm",
    "encoder.norm.weight": "norm",
    "ctc_head.weight": "output",
    "ctc_head.bias": "bias",
    "decoder.embedding.weight": "embedding",
    "decoder.conv.weight": "decoder",
    "joiner.output_linear.weight": "joiner",
    "simple.am.weight": "training_only",
    "something.else": None,
}


def test_default_rules() -> None:
    config = QuantConfig("x")
    for name, role in NAMES.items():
        dims = 1 if name.endswith("bias") or role == "norm" else 2
        assert config.role_of(name, dims) == role, name
    assert config.role_of("encoder.layers.0.ff1.gain", 1) == "encoder_linear"
    low = QuantConfig.preset("paper")
    assert low.role_of("encoder.layers.0.ff1.gain", 1) == "bias"  # vectors take no low precisions


BAD = [
    (lambda: TensorScheme((9,)), "bits"),
    (lambda: TensorScheme(()), "bits"),
    (lambda: TensorScheme((2, 2)), "bits"),
    (lambda: TensorScheme((2,), scale="max"), "scale statistic 'max'"),
    (lambda: TensorScheme((2,), granularity="row"), "granularity 'row'"),
    (lambda: TensorScheme((4,), scale="absmean"), "absmean"),
    (lambda: QuantConfig("x", alpha_grad="none"), "alpha_grad"),
    (lambda: QuantConfig("x", weight_grad="none"), "weight_grad"),
    (lambda: QuantConfig("x", alpha_grad_scale="x"), "alpha_grad_scale"),
    (lambda: QuantConfig("x", {"bias": TensorScheme((8,))}), "role bias"),
    (lambda: QuantConfig("x", {"output": TensorScheme((2, 1))}), "switched_roles"),
    (
        lambda: QuantConfig("x", {"linear": TensorScheme((1, 3)), "attention": TensorScheme((4, 2))}),
        "in common",
    ),
    (lambda: QuantConfig("x", rules=("*", "role")), "rules are pairs"),
    (lambda: QuantConfig("x", rules=(("*", "role", "more"),)), "rules are pairs"),
    (lambda: QuantConfig("x", rules=(("*", 3),)), "rules are pairs"),
    (lambda: QuantConfig("x", rules="*"), "rules are pairs"),
    (lambda: QuantConfig("x", rules=7), "rules are pairs"),
    (lambda: QuantConfig("x", rules=(("class:", "role"),)), "names no class"),
    (lambda: QuantConfig("x", schemes=[1]), "schemes map roles"),
    (lambda: QuantConfig("x", {"output": (8,)}), "TensorScheme"),
    (lambda: QuantConfig("x", switched_roles="linear"), "switched_roles"),
    (lambda: TensorScheme(4), "give a tuple"),
    (lambda: TensorScheme((4,), quantizer="ternary"), "quantizer 'ternary' is unknown"),
    (
        lambda: TensorScheme((4,), quantizer="codebook", granularity="channel"),
        "granularity of codebook 'channel' is unknown: choose one of tensor",
    ),
    (lambda: TensorScheme((4,), input_bits=9), "input_bits 9"),
    (lambda: TensorScheme((32,), input_bits=8), "input_bits"),
    (lambda: QuantConfig.preset("tiny"), "preset 'tiny'"),
    (lambda: QuantConfig.preset("paper", (3, 99)), "bits"),
    (lambda: QuantConfig.preset("paper", colour="red"), "colour"),
    (lambda: QuantConfig.from_json("{"), "JSON"),
    (lambda: QuantConfig.from_dict({"name": "x", "colour": "red"}), "colour"),
    (lambda: QuantConfig.from_dict({}), "name"),
    (lambda: QuantConfig.from_dict({"name": "x", "schemes": {"bias": {"bits": 3}}}), "give a tuple"),
    (lambda: QuantConfig.from_dict({"name": "x", "schemes": {"bias": {"size": 3}}}), "config"),
]


@pytest.mark.parametrize(("make", "word"), BAD)
def test_refusals_are_one_line(make, word: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_replace_validates_again() -> None:
    with pytest.raises(UserError):
        replace(QuantConfig.preset("paper"), alpha_grad="wrong")


def test_precisions_of_tensors_that_differ() -> None:
    """What all switched roles have, or have no choice in."""

    def switched(ffn: tuple[int, ...], attention: tuple[int, ...]) -> tuple[int, ...]:
        schemes = {"encoder_linear": TensorScheme(ffn), "attention": TensorScheme(attention)}
        return QuantConfig("x", schemes).switched_precisions

    assert switched((4,), (2,)) == (4, 2)
    assert switched((4,), (2, 1)) == (2, 1)
    assert switched((4, 2), (2, 1)) == (2,)
    assert switched((8, 2, 1), (1, 2)) == (2, 1)


def test_configs_of_older_checkpoints_load() -> None:
    """As stored before labels were free and quantizers had names."""
    text = """{"name": "paper", "schemes": {"encoder_linear": {"bits": [2, 1], "scale": "2std-clipped",
    "granularity": "tensor"}, "convolution": {"bits": [4], "scale": "running-absmax", "granularity": "tensor"}},
    "rules": [["*bias", "bias"], ["encoder.layers.*.conv.*", "convolution"], ["encoder.layers.*", "encoder_linear"]],
    "switched_roles": ["encoder_linear", "attention"], "layer_prefix": "encoder.layers", "alpha_grad": "chain",
    "weight_grad": "identity", "alpha_grad_scale": "none"}"""
    config = QuantConfig.from_json(text)
    assert config.switched_precisions == (2, 1) and config.schemes["convolution"].quantizer == "linear"
    assert config.role_of("encoder.layers.0.ff1.w1.weight", 2, nn.Linear) == "encoder_linear"
    assert config.role_of("head.weight", 2, nn.Linear) is None, "the rules stand in the checkpoint"


def test_rules_by_class() -> None:
    class Mine(nn.Linear):
        pass

    rules = (("*.special", "special"), ("class:Mine|Conv*", "mine"), ("class:Linear", "linear"))
    config = QuantConfig("x", rules=rules)
    assert config.role_of("a.weight", 2, Mine) == config.role_of("a.weight", 3, nn.Conv1d) == "mine"
    assert config.role_of("a.special", 2, Mine) == "special"
    assert config.role_of("a.weight", 2, nn.Linear) == "linear"
    assert config.role_of("a.weight", 2, nn.Embedding) is None and config.role_of("a.weight", 2) is None


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        (nn.LayerNorm, "norm"),
        (nn.BatchNorm2d, "norm"),
        (nn.InstanceNorm1d, "norm"),
        (nn.GroupNorm, "norm"),
        (nn.Embedding, "embedding"),
        (nn.MultiheadAttention, "attention"),
        (nn.Linear, "linear"),
        (nn.ConvTranspose1d, "convolution"),
        (nn.GRU, "recurrent"),
        (nn.Bilinear, None),
    ],
)
def test_default_rules_know_kinds_of_modules(kind: type, role: str | None) -> None:
    assert QuantConfig("x").role_of("blocks.3.some_weight", 2, kind) == role
