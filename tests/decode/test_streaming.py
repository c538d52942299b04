"""Searches of a transducer chunk by chunk: the offline searches' tokens, from the encoder's own stream."""

from __future__ import annotations

import os

import pytest
import torch

from lowbit_k2.core.encoders import LstmConfig
from lowbit_k2.decode.beam import BeamStreams
from lowbit_k2.decode.streaming import GreedyStreams
from lowbit_k2.decode.transducer import greedy_search, modified_beam_search
from lowbit_k2.models import TransducerConfig, make_model
from lowbit_k2.models.transducer import Transducer
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision
from tests.decode.toy_transducer import all_alignments, log_sum, make_transducer


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


class Bigram:
    """A language model over 9 tokens; the blank's row stands for the start, the last column for the end."""

    def __init__(self) -> None:
        self.rows = torch.randn(9, 10, generator=torch.Generator().manual_seed(3)).mul(2).log_softmax(-1)

    def _after(self, histories: list[tuple[int, ...]]) -> torch.Tensor:
        return self.rows[[history[-1] if history else 0 for history in histories]]

    def __call__(self, histories: list[tuple[int, ...]]) -> torch.Tensor:
        return self._after(histories)[:, :-1]

    def ends(self, histories: list[tuple[int, ...]]) -> torch.Tensor:
        return self._after(histories)[:, -1]


@pytest.mark.parametrize("decoder_kind", ["stateless", "lstm"])
@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("lm", [None, Bigram()], ids=["alone", "lm"])
@torch.no_grad()
def test_a_beam_goes_on_from_chunk_to_chunk(decoder_kind: str, size: int, lm: Bigram | None) -> None:
    model, inputs = make(decoder_kind), torch.randn(2, 94, 6)
    options = {"beam_size": 3, "blank_penalty": 1.0, "lm": lm, "lm_scale": 0.3}
    with use_precision(model, 1):
        whole = modified_beam_search(model, *model.encoder(inputs, torch.tensor([94, 94])), **options)
        streams, state = BeamStreams(model, 2, **options), None
        settled: list[tuple[int, ...]] = [(), ()]
        for chunk in inputs.split(size, dim=1):
            encoder_out, state = model.encoder.stream(chunk, state)
            settled = [a + tuple(b) for a, b in zip(settled, streams.accept(encoder_out), strict=True)]
    for found, expected, certain in zip(streams.nbest(), whole, settled, strict=True):
        assert [h.labels for h in found] == [h.labels for h in expected] and len(found) == 3
        assert [h.total for h in found] == pytest.approx([h.total for h in expected], abs=1e-3)
        assert [h.lm for h in found] == pytest.approx([h.lm for h in expected], abs=1e-4)
        assert certain and len(certain) == len(os.path.commonprefix([h.labels for h in found]))
        assert all(h.labels[: len(certain)] == certain for h in found)


def test_a_wide_beam_of_a_stream_sums_all_alignments() -> None:
    model, frames = make_transducer(7, 4, None), torch.randn(1, 5, 16)
    streams = BeamStreams(model, 1, beam_size=4**5)
    for chunk in frames.split(2, dim=1):
        assert streams.accept(chunk) == [[]], "nothing is certain where nothing is pruned"
    totals = {y: log_sum(scores) for y, scores in all_alignments(model, frames[0]).items()}
    assert {h.labels: h.total for h in streams.nbest()[0]} == pytest.approx(totals)


@pytest.mark.parametrize("decoder_kind", ["stateless", "lstm"])
@torch.no_grad()
def test_a_stream_may_pause_beside_others_that_go_on(decoder_kind: str) -> None:
    model, encoder_out = make(decoder_kind), torch.randn(2, 24, 16)
    streams = BeamStreams(model, 2)
    streams.accept(encoder_out[:, :8], torch.tensor([8, 5]))
    streams.accept(encoder_out[:, 8:16], torch.tensor([8, 0]))
    streams.accept(encoder_out[:, 16:], torch.tensor([8, 8]))
    rows = [encoder_out[:1], torch.cat([encoder_out[1:, :5], encoder_out[1:, 16:]], dim=1)]
    for found, row in zip(streams.nbest(), rows, strict=True):
        [expected] = modified_beam_search(model, row, torch.tensor([row.size(1)]))
        assert [h.labels for h in found] == [h.labels for h in expected] and len(found[0].labels) > 2
        assert [h.total for h in found] == pytest.approx([h.total for h in expected], abs=1e-4)


@torch.no_grad()
def test_what_a_stream_keeps_does_not_grow() -> None:
    streams = BeamStreams(make("lstm"), 2)
    for _ in range(40):
        streams.accept(torch.randn(2, 1, 16))
    assert len(streams.contexts.known) <= 8 < len(streams.beams[0][0].labels)
