"""Recalibrated BatchNorm statistics are the mean over the given batches, for the precision in force."""

from __future__ import annotations

import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.models import TransducerConfig, make_model
from lowbit_k2.models.masking import MaskedBatchNorm, valid_frames
from lowbit_k2.quant import use_precision
from lowbit_k2.train.batchnorm import recalibrate
from tests.train.toy import CONFIG, toy_batches, toy_trainer


def test_first_norm_gets_the_mean_of_its_inputs(tmp_path):
    model = toy_trainer(tmp_path).model.eval()
    norm = model.encoder.layers[0].conv.norm
    seen = []
    hook = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    batches = toy_batches(1)
    with use_precision(model, 1):
        assert recalibrate(model, batches) == len(batches)
    hook.remove()
    means = [
        x[valid_frames(CONFIG.output_lens(b.input_lens), x.size(1))].mean(0) for x, b in zip(seen, batches, strict=True)
    ]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    assert all(not m.training and m.momentum == 0.1 for m in model.modules() if isinstance(m, MaskedBatchNorm))


def test_precisions_get_different_statistics(tmp_path):
    model = toy_trainer(tmp_path).model.eval()
    means = []
    for bits in (1, 2):
        with use_precision(model, bits):
            recalibrate(model, toy_batches(1))
        means.append(model.encoder.layers[1].conv.norm.running_mean.clone())
    assert not torch.allclose(means[0], means[1])


def test_no_batch_is_an_error(tmp_path):
    model = toy_trainer(tmp_path).model.eval()
    with use_precision(model, 1), pytest.raises(UserError, match="no batch"):
        recalibrate(model, [])


def test_a_transducer_is_recalibrated_as_well():
    """It has no `forward` of its own: the network's output is what searches read."""
    torch.manual_seed(0)
    sizes = {
        "d_model": 16,
        "num_layers": 1,
        "ffn_dim": 24,
        "subsampling_channels": 4,
        "decoder_dim": 8,
        "joiner_dim": 8,
    }
    model = make_model(TransducerConfig.preset("demo", vocab_size=6, num_features=20, **sizes)).eval()
    norm = model.encoder.layers[0].conv.norm
    before = norm.running_mean.clone()
    assert recalibrate(model, toy_batches(1)) == 5
    assert not torch.equal(norm.running_mean, before) and norm.num_batches_tracked == 5
