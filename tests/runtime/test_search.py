"""Searches of the runtime against those of decode/, on the same packed models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit_k2.core.config import ConfigError
from lowbit_k2.decode import greedy, transducer
from lowbit_k2.export import load_packed_model
from lowbit_k2.models import TransducerConfig
from lowbit_k2.quant import QuantConfig
from lowbit_k2.runtime import PackedTransducer, SearchConfig
from lowbit_k2.runtime.search import ctc_greedy_search, greedy_search, modified_beam_search
from tests.runtime.models import export, random_model, schemes

QUANTS = {
    "float": QuantConfig.preset("float"),
    "all-low": QuantConfig.preset("all-low"),
    "2 bits, inputs of 16": schemes(bits=(2,), input_bits=16),
    "4 bits by block": schemes(bits=(4,), granularity="block64"),
}


@pytest.mark.parametrize("frames, classes", [(0, 3), (1, 1), (1, 4), (200, 2), (300, 5)])
def test_ctc_greedy_search(frames: int, classes: int) -> None:
    scores = np.random.default_rng(frames).normal(size=(frames, classes)).astype(np.float32)
    expected = greedy.ctc_greedy_search(torch.from_numpy(scores)[None], torch.tensor([frames])) if frames else None
    found = ctc_greedy_search(scores)
    assert (found.labels, found.frames) == ((expected[0].labels, expected[0].frames) if frames else ((), ()))


@pytest.mark.parametrize("context_size", [1, 2, 3])
@pytest.mark.parametrize("name", QUANTS)
def test_hypotheses_are_those_of_torch(name: str, context_size: int, tmp_path: Path) -> None:
    model = random_model(QUANTS[name], TransducerConfig, context_size=context_size, decoder_dim=16)
    path = export(model, tmp_path / "a")
    packed, network = load_packed_model(path).model, PackedTransducer.load(path, "exact")
    said = set()
    for frames, penalty in ((0, 0.0), (1, 0.0), (60, 0.0), (60, 1.5)):
        # loud enough that many things are heard
        encoder_out = np.random.default_rng(frames).normal(0, 6, (frames, 24)).astype(np.float32)
        inputs = torch.from_numpy(encoder_out)[None], torch.tensor([frames])
        [expected] = transducer.greedy_search(packed, *inputs, blank_penalty=penalty)
        found = greedy_search(network, encoder_out, penalty)
        assert (found.labels, found.frames) == (expected.labels, expected.frames)
        said.update(expected.labels)
        for beam_size in (1, 4, 50):
            [nbest] = transducer.modified_beam_search(packed, *inputs, beam_size=beam_size, blank_penalty=penalty)
            found = modified_beam_search(network, encoder_out, beam_size, penalty)
            assert found[0].labels == nbest[0].labels and len(found) == len(nbest)
            assert np.allclose([hyp.log_prob for hyp in found], [hyp.total for hyp in nbest], atol=1e-3)
            assert found[0].frames == nbest[0].frames and len(found[0].frames) == len(found[0].labels)
            assert np.all(np.diff(found[0].frames) > 0)
    assert len(said) > 3


@pytest.mark.parametrize("ctc_head", [False, True])
def test_blank_scores(ctc_head: bool, tmp_path: Path) -> None:
    model = random_model(QuantConfig.preset("float"), TransducerConfig, ctc_head=ctc_head)
    network = PackedTransducer.load(export(model, tmp_path / "a"), "exact")
    encoder_out = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)
    frames = torch.from_numpy(encoder_out)[None]
    with torch.no_grad():
        expected = model.ctc_log_probs(frames)[..., 0] if ctc_head else transducer.blank_log_probs(model, frames)
    assert np.abs(network.blank_scores(encoder_out) - expected[0].numpy()).max() < 1e-5


def test_unknown_methods() -> None:
    with pytest.raises(ConfigError, match="decoding_method '1best' is unknown: choose of ctc-greedy-search, "):
        SearchConfig(decoding_method="1best")
