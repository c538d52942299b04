"""The best path of a transcript, against all label sequences tried one by one, and against k2."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from lowbit_k2.core.topology import CHAIN
from lowbit_k2.decode.alignment import AlignedToken, align_tokens
from lowbit_k2.errors import UserError
from lowbit_k2.k2_compat import require_k2


def collapsed(frames: tuple[int, ...]) -> tuple[int, ...]:
    changes = [token for t, token in enumerate(frames) if t == 0 or token != frames[t - 1]]
    return tuple(token for token in changes if token)


def random_log_probs(seed: int, frames: int, classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, classes, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)


def path_of(tokens: list[AlignedToken], frames: int) -> list[int]:
    path = [0] * frames
    for token in tokens:
        path[token.start : token.end] = [token.token] * (token.end - token.start)
    return path


WORDS = [
    [[[1]]],
    [[[1, 2]], [[2]]],
    [[[1, 1]], [[1]]],
    [[[1], [2, 3]], [[3], [1, 2]]],
    [[[2]], [[2], [1, 2]], [[2, 2]]],
]


@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize("frames", [3, 6])
def test_no_path_is_better(words: list, frames: int) -> None:
    transcripts = {tuple(token for tokens in choice for token in tokens) for choice in product(*words)}
    for seed in range(4):
        log_probs = random_log_probs(seed, frames, 4)
        scores = {
            path: sum(float(log_probs[t, label]) for t, label in enumerate(path))
            for path in product(range(4), repeat=frames)
            if collapsed(path) in transcripts
        }
        if not scores:
            with pytest.raises(UserError, match=f"{frames} frames cannot hold the transcript"):
                align_tokens(log_probs, words)
            continue
        found = align_tokens(log_probs, words)
        path = path_of(found, frames)
        best = max(scores.values())
        assert scores[tuple(path)] == pytest.approx(best)
        blanks = sum(float(log_probs[t, 0]) for t, label in enumerate(path) if label == 0)
        assert sum(token.log_prob for token in found) + blanks == pytest.approx(best)
        assert all(a.end <= b.start and a.word <= b.word for a, b in zip(found, found[1:], strict=False))


@pytest.mark.k2
def test_k2_finds_the_same_path() -> None:
    k2 = require_k2()
    for seed in range(5):
        log_probs, tokens = random_log_probs(seed, 40, 9).float(), [3, 3, 1, 8, 2, 2, 5]
        dense = k2.DenseFsaVec(log_probs[None], torch.tensor([[0, 0, 40]], dtype=torch.int32))
        graph = k2.ctc_graph([tokens], modified=False)
        lattice = k2.intersect_dense(graph, dense, output_beam=1000.0)
        best = float(k2.shortest_path(lattice, use_double_scores=True).get_tot_scores(True, False)[0])
        found = align_tokens(log_probs, [[tokens[:4]], [tokens[4:]]])
        path = path_of(found, 40)
        assert sum(float(log_probs[t, label]) for t, label in enumerate(path)) == pytest.approx(best, rel=1e-5)
        assert [token.token for token in found] == tokens


def test_times_are_those_of_the_frames() -> None:
    labels = [0, 0, 2, 2, 0, 1, 0, 1, 1, 0]
    log_probs = torch.full((10, 3), -9.0)
    log_probs[range(10), labels] = -0.001
    found = align_tokens(log_probs.log_softmax(-1), [[[2]], [[1, 1]]])
    assert [(t.word, t.token, t.start, t.end) for t in found] == [(0, 2, 2, 4), (1, 1, 5, 6), (1, 1, 7, 9)]
    with pytest.raises(UserError, match="no words"):
        align_tokens(log_probs, [])


def chain_units(path: tuple[int, ...]) -> tuple[int, ...] | None:
    """Units of a path over the classes 2u (entry) and 2u + 1 (loop); None where a loop does not follow its unit."""
    units: list[int] = []
    for t, label in enumerate(path):
        if label % 2 == 0:
            units.append(label // 2)
        elif t == 0 or path[t - 1] // 2 != label // 2:
            return None
    return tuple(units)


@pytest.mark.parametrize("words", [[[[1]]], [[[1, 1]]], [[[1, 2]], [[2]]], [[[1], [2, 1]], [[2]]]], ids=str)
@pytest.mark.parametrize("frames", [2, 5])
def test_no_path_of_the_chain_topology_is_better(words: list, frames: int) -> None:
    ways: set[tuple[int, ...]] = {(), (0,)}
    for pronunciations in words:
        said = {(*way, *pronunciation) for way in ways for pronunciation in pronunciations}
        ways = said | {(*way, 0) for way in said}
    for seed in range(3):
        log_probs = random_log_probs(seed, frames, 6)
        scores = {
            path: sum(float(log_probs[t, label]) for t, label in enumerate(path))
            for path in product(range(6), repeat=frames)
            if chain_units(path) in ways
        }
        if not scores:
            with pytest.raises(UserError, match=f"{frames} frames cannot hold the transcript"):
                align_tokens(log_probs, words, CHAIN)
            continue
        found, best = align_tokens(log_probs, words, CHAIN), max(scores, key=scores.get)
        spoken = [token for token in chain_units(best) if token]
        assert [token.token for token in found] == spoken
        for token in found:
            assert best[token.start] == 2 * token.token
            assert set(best[token.start + 1 : token.end]) <= {2 * token.token + 1}
            own = sum(float(log_probs[t, best[t]]) for t in range(token.start, token.end))
            assert token.log_prob == pytest.approx(own)
        heard = {t for token in found for t in range(token.start, token.end)}
        assert all(best[t] < 2 for t in range(frames) if t not in heard)
