"""Searches of a transducer without lattices, against the definition and against all alignments."""

from __future__ import annotations

import pytest
import torch

from lowbit_k2.decode.transducer import greedy_search, modified_beam_search
from lowbit_k2.models.transducer import Transducer
from tests.decode.toy import labels_of
from tests.decode.toy_transducer import all_alignments, log_sum, make_transducer, next_scores


def step_by_step(model: Transducer, frames: torch.Tensor, penalty: float) -> tuple[tuple[int, ...], float]:
    """Greedy search of one utterance, one frame at a time."""
    tokens: tuple[int, ...] = ()
    total = 0.0
    for frame in frames:
        scores = next_scores(model, frame, tokens, penalty)
        best = scores.index(max(scores))
        tokens += (best,) if best else ()
        total += scores[best]
    return tokens, total


@pytest.mark.parametrize("context_size", [1, 2, None])
@pytest.mark.parametrize("penalty", [0.0, 0.4])
def test_greedy_search(context_size: int | None, penalty: float) -> None:
    model = make_transducer(4, 6, context_size)
    encoder_out, lens = torch.randn(3, 12, 16), torch.tensor([12, 0, 7])
    found = greedy_search(model, encoder_out, lens, penalty)
    for hypothesis, frames, n in zip(found, encoder_out, lens, strict=True):
        tokens, score = step_by_step(model, frames[:n], penalty)
        assert hypothesis.labels == tokens and hypothesis.total == pytest.approx(score, abs=1e-5)
    assert found[1].labels == () and len(found[0].labels) > 2


@pytest.mark.parametrize("context_size", [1, 2, None])
@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_a_wide_beam_finds_the_most_probable_sequence(context_size: int | None, penalty: float) -> None:
    model = make_transducer(7, 4, context_size)
    encoder_out, lens = torch.randn(8, 5, 16), torch.tensor([5, 4, 5, 3, 0, 5, 4, 5])
    found = modified_beam_search(model, encoder_out, lens, beam_size=4**5, blank_penalty=penalty)
    greedy = greedy_search(model, encoder_out, lens, penalty)
    for frames, length, nbest in zip(encoder_out, lens, found, strict=True):
        totals = {y: log_sum(scores) for y, scores in all_alignments(model, frames[:length], penalty).items()}
        assert nbest[0].labels == max(totals, key=totals.get)
        assert {h.labels: h.acoustic for h in nbest} == pytest.approx(totals), "every sequence with its score"
        assert log_sum(list(totals.values())) == pytest.approx(0.0, abs=1e-9)
    assert labels_of(found) != [list(best.labels) for best in greedy], "the sums matter in this model"


def test_a_beam_of_one_without_competition_is_greedy() -> None:
    model = make_transducer(6, 5)
    model.joiner.output.weight.data *= 20  # so sure of itself that no second origin counts
    encoder_out, lens = torch.randn(4, 15, 16), torch.tensor([15, 3, 9, 12])
    beam, greedy = (
        modified_beam_search(model, encoder_out, lens, beam_size=1),
        greedy_search(model, encoder_out, lens),
    )
    assert labels_of(beam) == [list(best.labels) for best in greedy]


@pytest.mark.parametrize("context_size", [2, None])
def test_utterances_do_not_disturb_each_other(context_size: int | None) -> None:
    model = make_transducer(7, 6, context_size)
    encoder_out, lens = torch.randn(4, 20, 16), torch.tensor([20, 11, 1, 16])
    together = modified_beam_search(model, encoder_out, lens)
    alone = [
        modified_beam_search(model, encoder_out[n : n + 1, :length], lens[n : n + 1])[0]
        for n, length in enumerate(lens.tolist())
    ]
    assert labels_of(together) == labels_of(alone)


def test_shallow_fusion_adds_the_language_model_once_per_token_and_at_the_end() -> None:
    model, scale = make_transducer(8, 4), 0.7
    torch.manual_seed(1)
    bigram = torch.randn(4, 5).mul(2).log_softmax(-1)  # after the blank stands for the start; the end is the last

    class Lm:
        def __call__(self, histories: list[tuple[int, ...]]) -> torch.Tensor:
            return torch.stack([bigram[history[-1] if history else 0, :4] for history in histories])

        def ends(self, histories: list[tuple[int, ...]]) -> torch.Tensor:
            return torch.stack([bigram[history[-1] if history else 0, 4] for history in histories])

    encoder_out, lens = torch.randn(6, 4, 16), torch.tensor([4, 4, 3, 4, 2, 4])
    found = modified_beam_search(model, encoder_out, lens, beam_size=4**4, lm=Lm(), lm_scale=scale)
    for frames, length, nbest in zip(encoder_out, lens, found, strict=True):
        acoustic = {y: log_sum(scores) for y, scores in all_alignments(model, frames[:length]).items()}
        lm = {y: scale * sum(float(bigram[a, b]) for a, b in zip((0, *y), (*y, 4), strict=True)) for y in acoustic}
        assert nbest[0].labels == max(acoustic, key=lambda y: acoustic[y] + lm[y])  # noqa: B023
        assert {h.labels: h.acoustic for h in nbest} == pytest.approx(acoustic, abs=1e-5)
        assert {h.labels: h.lm for h in nbest} == pytest.approx(lm, abs=1e-5)
    assert labels_of(found) != labels_of(modified_beam_search(model, encoder_out, lens, beam_size=4**4))
