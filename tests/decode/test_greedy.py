"""Greedy search against itertools.groupby, on every path of a small grid and on random scores."""

from __future__ import annotations

from itertools import groupby, product

import pytest
import torch

from lowbit_k2.decode.greedy import ctc_greedy_search, transducer_greedy_search
from lowbit_k2.models import ConformerTransducer, TransducerConfig


def collapse(path: tuple[int, ...]) -> list[int]:
    return [token for token, _ in groupby(path) if token != 0]


def test_every_path_of_a_small_grid() -> None:
    paths = list(product(range(3), repeat=4))
    scores = torch.nn.functional.one_hot(torch.tensor(paths), 3).float()  # (81, 4, 3)
    assert ctc_greedy_search(scores, torch.full((81,), 4)) == [collapse(path) for path in paths]


def test_lens_cut_the_padding() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 9, 4).log_softmax(-1)  # (N, T, V)
    lens = torch.tensor([9, 7, 1, 0, 4])
    expected = [collapse(tuple(scores[n, :t].argmax(-1).tolist())) for n, t in enumerate(lens.tolist())]
    assert ctc_greedy_search(scores, lens) == expected


def step_by_step(model: ConformerTransducer, frames: torch.Tensor, penalty: float) -> list[int]:
    """One utterance, one frame at a time, from the definition."""
    tokens = [0] * model.config.context_size
    for frame in frames:
        context = torch.tensor([tokens[-model.config.context_size :]])
        logits = model.joiner(frame, model.decoder(context, pad=False)[0, 0])
        logits[0] -= penalty
        best = int(logits.argmax())
        if best:
            tokens.append(best)
    return tokens[model.config.context_size :]


@pytest.mark.parametrize("context_size", [1, 2])
@pytest.mark.parametrize("penalty", [0.0, 0.4])
def test_transducer_greedy_search(context_size: int, penalty: float) -> None:
    torch.manual_seed(4)
    config = TransducerConfig.preset(
        "demo", vocab_size=6, d_model=16, decoder_dim=8, joiner_dim=8, context_size=context_size
    )
    model = ConformerTransducer(config)
    for parameter in (*model.decoder.parameters(), *model.joiner.parameters()):
        torch.nn.init.normal_(parameter)
    encoder_out, lens = torch.randn(3, 12, 16), torch.tensor([12, 0, 7])
    found = transducer_greedy_search(model, context_size, encoder_out, lens, penalty)
    with torch.no_grad():
        expected = [step_by_step(model, frames[:n], penalty) for frames, n in zip(encoder_out, lens, strict=True)]
    assert found == expected and found[1] == [] and len(found[0]) > 2
