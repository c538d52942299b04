"""The prediction network, the joiner, and the configuration of a transducer."""

from __future__ import annotations

import json

import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.models import CtcConfig, TransducerConfig, make_model, model_config_from_dict
from lowbit_k2.models.ctc import CtcModel
from lowbit_k2.models.transducer import Joiner, Transducer
from lowbit_k2.quant import QuantConfig, quantize_model


def test_the_joiner_broadcasts_and_takes_projected_input() -> None:
    torch.manual_seed(0)
    joiner = Joiner(6, 4, 5, 7)
    encoder, decoder = torch.randn(2, 3, 6), torch.randn(2, 4, 4)
    logits = joiner(encoder[:, :, None], decoder[:, None])
    assert logits.shape == (2, 3, 4, 7)
    one = joiner.output(torch.tanh(joiner.encoder_proj(encoder[1, 2]) + joiner.decoder_proj(decoder[1, 3])))
    torch.testing.assert_close(logits[1, 2, 3], one)
    projected = joiner(joiner.encoder_proj(encoder)[:, :, None], joiner.decoder_proj(decoder)[:, None], project=False)
    torch.testing.assert_close(projected, logits)


def test_the_configuration_survives_json() -> None:
    config = TransducerConfig.preset("tiny", ctc_head=True, vocab_size=60, context_size=1, dropout=0.05)
    assert (config.vocab_size, config.decoder_dim, config.encoder.dropout) == (60, 144, 0.05)
    assert model_config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    ctc = CtcConfig(config.encoder, vocab_size=60)
    assert model_config_from_dict(json.loads(json.dumps(ctc.to_dict()))) == ctc
    assert isinstance(make_model(config), Transducer) and isinstance(make_model(ctc), CtcModel)


@pytest.mark.parametrize(
    "values",
    [
        {"decoder_dim": 0},
        {"decoder_dim": 10},
        {"context_size": 0},
        {"decoder_kind": "gru"},
        {"decoder_kind": "lstm", "decoder_layers": 0},
        {"encoder": {"d_model": -1}},
        {"what": 1},
        {"kind": "x"},
    ],
)
def test_wrong_configurations(values: dict) -> None:
    with pytest.raises(UserError):
        model_config_from_dict({**TransducerConfig.preset("tiny").to_dict(), **values})


def test_every_matrix_of_a_transducer_gets_its_bits() -> None:
    """With `all-low` nothing but the projections of the simple loss, which are not stored, stays float."""
    model = Transducer(TransducerConfig.preset("demo", vocab_size=30, ctc_head=True))
    report = quantize_model(model, QuantConfig.preset("all-low"))
    roles = {row.name: (row.role, row.bits) for row in report.rows}
    assert len(roles) == len(report.rows)
    assert roles["decoder.embedding.weight"] == ("embedding", (4,))
    assert roles["decoder.conv.weight"] == ("decoder", (4,))
    assert roles["joiner.encoder_proj.weight"] == roles["joiner.output.weight"] == ("joiner", (4,))
    floats = {name for name, (_, bits) in roles.items() if bits == (32,)}
    assert {name.split(".")[0] for name in floats} <= set(Transducer.training_only)


def test_every_matrix_of_an_lstm_transducer_gets_its_bits() -> None:
    model = Transducer(TransducerConfig.preset("lstm-tiny", vocab_size=30, d_model=16, num_layers=2, cell_dim=24))
    rows = {row.name: row for row in quantize_model(model, QuantConfig.preset("lossless16"), strict=True).rows}
    for name in ("ih", "hh", "hr"):
        found = rows[f"encoder.layers.1.lstm.weight_{name}_l0"]
        assert (found.role, found.bits, found.switched) == ("encoder_linear", (2, 1), True)
    assert (rows["decoder.lstm.weight_hh_l0"].role, rows["decoder.lstm.weight_hh_l0"].bits) == ("decoder", (8,))
    halves = {name for name, row in rows.items() if row.bits == (16,)}
    assert {"encoder.layers.0.norm.weight", "encoder.layers.0.lstm.bias_ih_l0", "decoder.lstm.bias_hh_l0"} <= halves
    paper = {row.name: row for row in quantize_model(Transducer(model.config), QuantConfig.preset("paper")).rows}
    assert paper["encoder.layers.0.lstm.weight_hh_l0"].bits == (2, 1)
    assert paper["decoder.lstm.weight_hh_l0"].bits == (32,)


def test_what_only_training_needs_can_be_left_out() -> None:
    config = TransducerConfig.preset("demo", vocab_size=30)
    names = [
        {name for name, _ in make_model(config, for_training).named_parameters()} for for_training in (True, False)
    ]
    assert names[1] < names[0] and {name.split(".")[0] for name in names[0] - names[1]} == {"simple"}


@pytest.mark.parametrize(
    ("name", "millions"), [("small", 10.0), ("medium", 30.0), ("large", 118.0), ("lstm-rnnt", 57.5), ("lstm-tiny", 1.9)]
)
def test_preset_sizes(name: str, millions: float) -> None:
    """The sizes for 960 hours, without what training alone needs."""
    model = Transducer(TransducerConfig.preset(name), for_training=False).to("meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)
