"""Greedy search of a transducer chunk by chunk: the offline search's tokens, from the encoder's own stream."""

from __future__ import annotations

import pytest
import torch

from lowbit_k2.core.encoders import LstmConfig
from lowbit_k2.decode.streaming import GreedyStreams
from lowbit_k2.decode.transducer import greedy_search
from lowbit_k2.models import TransducerConfig, make_model
from lowbit_k2.models.transducer import Transducer
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision


def make(decoder_kind: str) -> Transducer:
    torch.manual_seed(5)
    encoder = LstmConfig(num_features=6, d_model=16, num_layers=2, stack_frames=2, reduce_after=1)
    model = make_model(TransducerConfig(encoder, 9, decoder_dim=8, joiner_dim=8, decoder_kind=decoder_kind))
    for parameter in (*model.decoder.parameters(), *model.joiner.parameters()):
        torch.nn.init.normal_(parameter)
    quantize_model(model, QuantConfig.preset("lossless16"))
    return model.eval()


@pytest.mark.parametrize("decoder_kind", ["stateless", "lstm"])
@pytest.mark.parametrize("size", [1, 3, 10, 64])
@torch.no_grad()
def test_chunks_bring_the_tokens_of_the_whole(decoder_kind: str, size: int) -> None:
    model, inputs = make(decoder_kind), torch.randn(2, 94, 6)
    with use_precision(model, 1):
        whole = greedy_search(model, *model.encoder(inputs, torch.tensor([94, 94])), blank_penalty=1.0)
        streams, state = GreedyStreams(model, 2, blank_penalty=1.0), None
        brought: list[list[int]] = [[], []]
        for chunk in inputs.split(size, dim=1):
            encoder_out, state = model.encoder.stream(chunk, state)
            for tokens, new in zip(brought, streams.accept(encoder_out), strict=True):
                tokens += new
    found = streams.hypotheses()
    assert [h.labels for h in found] == [h.labels for h in whole] == [tuple(tokens) for tokens in brought]
    assert [h.total for h in found] == pytest.approx([h.total for h in whole], abs=1e-4)
    assert min(len(set(h.labels)) for h in found) >= 3, "the model says more than one thing"


@torch.no_grad()
def test_a_stream_that_has_ended_stays_as_it_is() -> None:
    model, encoder_out = make("lstm"), torch.randn(2, 20, 16)
    streams = GreedyStreams(model, 2)
    streams.accept(encoder_out[:, :12], torch.tensor([12, 7]))
    streams.accept(encoder_out[:, 12:], torch.tensor([8, 0]))
    alone = [GreedyStreams(model, 1) for _ in range(2)]
    for n, length in enumerate((20, 7)):
        alone[n].accept(encoder_out[n : n + 1, :length])
    assert streams.tokens == [one.tokens[0] for one in alone] and len(streams.tokens[0]) > len(streams.tokens[1]) > 0
