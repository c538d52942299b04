"""A run that starts from another checkpoint: a float model, other precisions, another vocabulary, frozen parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.models import make_model
from lowbit_k2.quant import QuantConfig, alpha_parameters, quantize_model
from lowbit_k2.quant.least_squares import nearest_alpha
from lowbit_k2.train.initialise import InitialState, freeze
from lowbit_k2.train.update import update
from tests.train.toy import CONFIG, ENCODER, run_epochs, toy_batches, toy_trainer


@pytest.fixture
def float_checkpoint(tmp_path: Path) -> Path:
    run_epochs(toy_trainer(tmp_path / "float", ("32",)), 1)
    return tmp_path / "float/epoch-1.pt"


def started(path: Path, config=CONFIG, precisions=(2, 1), frozen=()):
    torch.manual_seed(5)
    model, initial = make_model(config), InitialState(path)
    initial.copy_weights(model)
    freeze(model, frozen)
    quantize_model(model, QuantConfig.preset("lossless16", precisions=precisions))
    initial.copy_scales(model)
    return model


def test_from_a_float_model(float_checkpoint: Path) -> None:
    model, source = started(float_checkpoint), InitialState(float_checkpoint)
    layer = model.encoder.layers[1]
    found = layer.ff1.w1.parametrizations.weight.original
    assert torch.equal(found, source.weights["encoder.layers.1.ff1.w1.weight"])
    assert torch.equal(layer.conv.norm.running_mean, source.weights["encoder.layers.1.conv.norm.running_mean"])
    statistic = layer.conv.pointwise1.parametrizations.weight[0].statistic
    latent = layer.conv.pointwise1.parametrizations.weight.original
    assert torch.equal(statistic, latent.abs().flatten(1).amax(1)), "of these weights"
    quantizer, latent = layer.ff1.w1.parametrizations.weight[0], layer.ff1.w1.parametrizations.weight.original
    nearest = nearest_alpha(latent, quantizer.scale(latent, 1), 1, "tensor")
    assert quantizer.alphas["1"] == nearest != 1, "to these weights"


def test_another_vocabulary_gets_a_new_head(float_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        model = started(float_checkpoint, replace(CONFIG, vocab_size=9))
    assert model.ctc_head.weight.shape == (9, 16)
    assert "2 (ctc_head.weight, ctc_head.bias) made anew" in caplog.text


def test_scales_come_along_where_the_precision_is_there(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, ("2", "1"))
    with torch.no_grad():
        for i, alpha in enumerate(alpha_parameters(trainer.model)):
            alpha.fill_(0.5 + i / 1000)
    trainer.save("epoch-1.pt")
    model = started(tmp_path / "epoch-1.pt", precisions=(4, 1))
    alphas = model.encoder.layers[0].ff1.w1.parametrizations.weight[0].alphas
    source = trainer.model.encoder.layers[0].ff1.w1.parametrizations.weight[0].alphas
    assert alphas["1"] == source["1"] != 1 and alphas["4"] not in (1, *source.values())


def test_frozen_parts_do_not_move(float_checkpoint: Path, tmp_path: Path) -> None:
    model = started(float_checkpoint, frozen=("encoder.subsampling", "encoder.layers.0"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = toy_trainer(tmp_path / "run", ("2", "1"))
    trainer.model = model
    trainer.optimizer = torch.optim.SGD(
        [{"params": [p for p in model.parameters() if p.requires_grad], "rate_scale": 1.0, "name": "matrices"}], lr=0.1
    )
    trainer.model.train()
    for batch in toy_batches(1):
        update(trainer, [batch])
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    frozen = ("encoder.subsampling", "encoder.layers.0.")
    weights = [name for name in moved if name.startswith(frozen) and "conv.norm" not in name]
    assert weights == [] and any(name.startswith("encoder.layers.1.") for name in moved)


def test_what_does_not_fit(float_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has encoder.subsampling.out.weight as .*the model wants"):
        started(float_checkpoint, replace(CONFIG, encoder=replace(ENCODER, d_model=24)))
    with pytest.raises(UserError, match="does not exist"):
        started(tmp_path / "none.pt")
    with pytest.raises(UserError, match="freeze encoder.layers.7: no parameter"):
        freeze(make_model(CONFIG), ["encoder.layers.7"])
