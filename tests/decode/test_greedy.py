"""Greedy search against itertools.groupby, on every path of a small grid and on random scores."""

from __future__ import annotations

from itertools import groupby, product

import pytest
import torch

from lowbit_k2.decode.greedy import ctc_greedy_search


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in groupby(path) if token != 0)


def test_every_path_of_a_small_grid() -> None:
    paths = list(product(range(3), repeat=4))
    scores = torch.nn.functional.one_hot(torch.tensor(paths), 3).float()  # (81, 4, 3)
    found = ctc_greedy_search(scores, torch.full((81,), 4))
    assert [best.labels for best in found] == [collapse(path) for path in paths]


def test_lens_cut_the_padding() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 9, 4).log_softmax(-1)  # (N, T, V)
    lens = torch.tensor([9, 7, 1, 0, 4])
    expected = [collapse(tuple(scores[n, :t].argmax(-1).tolist())) for n, t in enumerate(lens.tolist())]
    found = ctc_greedy_search(scores, lens)
    assert [best.labels for best in found] == expected
    best = [scores[n, :t].max(-1).values.sum().item() for n, t in enumerate(lens.tolist())]
    assert [hypothesis.total for hypothesis in found] == pytest.approx(best, abs=1e-5)
