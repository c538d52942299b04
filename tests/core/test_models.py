"""Shapes that settings promise are those of the torch modules; files with others are refused at once."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from lowbit_k2.core.models import CtcConfig, ModelConfig, TransducerConfig, check_shapes, model_config_from_dict
from lowbit_k2.errors import UserError
from lowbit_k2.models import make_model

SMALL = {"d_model": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 24, "subsampling_channels": 4, "conv_kernel": 5}
CONFIGS = [
    CtcConfig.preset("tiny", vocab_size=11, **SMALL),
    CtcConfig.preset("demo", vocab_size=11, conv_norm="layer", num_features=23, **SMALL),
    CtcConfig.preset("demo", vocab_size=11, **{**SMALL, "ffn_dim": (24, 7)}),
    TransducerConfig.preset("demo", vocab_size=11, ctc_head=True, context_size=1, **SMALL),
    TransducerConfig.preset("small", vocab_size=11, context_size=3, **SMALL),
    TransducerConfig.preset("lstm-tiny", vocab_size=11, ctc_head=True, d_model=16, num_layers=2, decoder_layers=2),
]


def shapes_of(config: ModelConfig, for_training: bool) -> dict[str, tuple[int, ...]]:
    state = make_model(config, for_training).state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
@pytest.mark.parametrize("for_training", [True, False])
def test_shapes_are_those_of_the_modules(config: ModelConfig, for_training: bool) -> None:
    found = shapes_of(config, for_training)
    assert list(config.shapes(for_training)) and dict(config.shapes(for_training)) == found
    check_shapes(config, found, for_training)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_lengths_are_those_of_the_modules(config: ModelConfig) -> None:
    model = make_model(config).eval()
    assert config.output_lens(config.min_frames - 1) < 1 <= config.output_lens(config.min_frames)
    for frames in (config.min_frames, 40, 41, 42, 43):
        with torch.no_grad():
            out, lens = model.encoder(torch.zeros(1, frames, config.num_features), torch.tensor([frames]))
        assert out.shape[1] == lens[0] == config.output_lens(frames)
    assert config.encoder.frames_per_output == 4


def test_settings_survive_json() -> None:
    for config in CONFIGS:
        assert model_config_from_dict(config.to_dict()) == config


def test_settings_of_a_transducer_of_before() -> None:
    """Its encoder carried the vocabulary, and had no kind; all prediction networks were stateless."""
    config = CONFIGS[3]
    old = config.to_dict()
    del old["decoder_kind"], old["decoder_layers"]
    encoder = {**old["encoder"], "vocab_size": old.pop("vocab_size")}
    del encoder["kind"]
    assert model_config_from_dict({**old, "encoder": encoder}) == config


def test_one_width_of_the_feed_forward_modules_was_a_number() -> None:
    """In checkpoints and packed files of before, and in scripts."""
    config = CONFIGS[0]
    old = config.to_dict()
    assert old["encoder"]["ffn_dim"] == [24] and config.encoder.layer_ffn_dims == (24, 24)
    assert model_config_from_dict({**old, "encoder": {**old["encoder"], "ffn_dim": 24}}) == config


def test_each_block_has_its_width() -> None:
    shapes = dict(CONFIGS[2].shapes())
    widths = [shapes[f"encoder.layers.{i}.{name}.w1.weight"][0] for i in (0, 1) for name in ("ff1", "ff2")]
    assert widths == [24, 24, 7, 7]


def test_lies_about_sizes_allocate_nothing() -> None:
    config = CONFIGS[0]
    found = shapes_of(config, True)
    start = time.monotonic()
    for change in (
        {"num_layers": 1000},
        {"d_model": 1 << 14},
        {"ffn_dim": 1 << 17},
        {"subsampling_channels": 1 << 12},
    ):
        with pytest.raises(UserError, match="its configuration wants .*the file has"):
            check_shapes(replace(config, encoder=replace(config.encoder, **change)), found)
    with pytest.raises(UserError, match="its configuration does not know"):
        check_shapes(config, {**found, "more": (1,)})
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"kind": "x"}, "model kind 'x' is unknown"),
        ({"kind": "ctc", "encoder": {"kind": "y"}}, "encoder kind 'y' is unknown"),
        ({"kind": "ctc", "encoder": 5}, "no object"),
        ({"kind": "ctc", "vocab_size": 1.0}, "vocab_size takes a whole number"),
        ({"kind": "ctc", "encoder": {"ffn_dim": [8, 8]}}, "ffn_dim 8,8: give one, or 12, from 1 to 131072"),
        ({"kind": "ctc", "encoder": {"ffn_dim": []}}, "ffn_dim : give one, or 12"),
        ({"kind": "ctc", "encoder": {"ffn_dim": 8.0}}, "ffn_dim 8.0: give one, or 12"),
        ({"kind": "ctc", "encoder": {"ffn_dim": [True]}}, "ffn_dim True: give one, or 12"),
        ({"kind": "ctc", "encoder": {"kind": "tdnnf", "bottlenecks": [1.5]}}, "bottlenecks 1.5: give one, or 14"),
        (7, "no object"),
    ],
)
def test_settings_that_are_none(values: object, line: str) -> None:
    with pytest.raises(UserError, match=line):
        model_config_from_dict(values)
