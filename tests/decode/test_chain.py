"""The chain topology: graphs with optional silence against exhaustive search, greedy search, and whose graph it is."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowbit_k2.core.topology import CHAIN, CTC, num_classes
from lowbit_k2.decode.greedy import ctc_greedy_search
from lowbit_k2.decode.lattice import SearchConfig, make_lattice, one_best
from lowbit_k2.decode.method import NetworkOutput
from lowbit_k2.decode.methods import load_graph
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import BackoffModel
from lowbit_k2.recipe.compile_hlg import compile_lang
from tests.decode import toy

CLASSES = num_classes(CHAIN, toy.NUM_CLASSES)
SILENT = 0
WIDE = SearchConfig(search_beam=200.0, output_beam=200.0, min_active_states=9999)


@pytest.fixture(scope="module")
def lang(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BackoffModel]:
    path = tmp_path_factory.mktemp("toy") / "lang"
    model = toy.make_lang(path)
    assert compile_lang(path, path / "lm.arpa", None, topology=CHAIN)
    assert not compile_lang(path, path / "lm.arpa", None, topology=CHAIN), "nothing has changed"
    return path, model


def units_of(classes: tuple[int, ...]) -> tuple[int, ...] | None:
    """None where a loop's class follows neither its entry nor itself."""
    units: list[int] = []
    for t, c in enumerate(classes):
        if c % 2 == 0:
            units.append(c // 2)
        elif t == 0 or classes[t - 1] // 2 != c // 2:
            return None
    return tuple(units)


def best_alignments(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """For each unit sequence the score of its best alignment, by trying all paths of (T, V)."""
    scores, found = log_probs.double().tolist(), {}
    for path in product(range(CLASSES), repeat=len(scores)):
        units = units_of(path)
        if units is not None:
            score = sum(scores[t][c] for t, c in enumerate(path))
            found[units] = max(found.get(units, score), score)
    return found


def spoken(words: tuple[str, ...]) -> set[tuple[int, ...]]:
    """Every way to say words, with one silence or none around each."""
    ways: set[tuple[int, ...]] = {(), (SILENT,)}
    for word in words:
        said = {(*way, *(toy.TOKENS[t] for t in p)) for way in ways for p in toy.ENTRIES[word]}
        ways = said | {(*way, SILENT) for way in said}
    return ways


def best_words(log_probs: Tensor, model: BackoffModel, lm_scale: float) -> tuple[float, list[str]]:
    alignments, found = best_alignments(log_probs), (-float("inf"), [])
    for number in range(len(log_probs) + 1):
        for words in product(toy.ENTRIES, repeat=number):
            scores = [alignments[units] for units in spoken(words) if units in alignments]
            if scores:
                found = max(found, (max(scores) + lm_scale * toy.graph_score(words, model), list(words)))
    return found


@pytest.mark.k2
@pytest.mark.parametrize("lm_scale", [1.0, 0.4])
def test_hlg_against_all_word_sequences(lang: tuple[Path, BackoffModel], lm_scale: float) -> None:
    path, model = lang
    graph = load_graph(path / "HLG_chain.pt", CLASSES, lm_scale, "cpu")
    words = {int(line.split()[1]): line.split()[0] for line in (path / "words.txt").read_text().splitlines()}
    log_probs, lens = toy.random_log_probs(3, 10, 4, CLASSES), torch.tensor([4, 4, 3, 2, 1] * 2)
    for n, [best] in enumerate(one_best(make_lattice(log_probs, lens, graph, WIDE))):
        score, expected = best_words(log_probs[n, : int(lens[n])], model, lm_scale)
        assert [words[i] for i in best.labels] == expected
        assert best.total == pytest.approx(score, abs=1e-4)


@pytest.mark.k2
def test_methods_read_the_graph_of_their_topology(lang: tuple[Path, BackoffModel], tmp_path: Path) -> None:
    path, model = lang
    log_probs, lens = toy.random_log_probs(5, 6, 4, CLASSES), torch.full((6,), 4)
    output = NetworkOutput(lens, log_probs)
    for name in ("1best", "nbest"):
        method = toy.make_method(name, lang_dir=path, topology=CHAIN, search=WIDE)
        found = toy.words_of(method.nbest(output))
        assert name == "nbest" or found == [best_words(x, model, 1.0)[1] for x in log_probs]
    tokens = toy.make_method("ctc-decoding", spells_words=True, topology=CHAIN, search=WIDE).nbest(output)
    expected = [max((score, units) for units, score in best_alignments(x).items())[1] for x in log_probs]
    assert toy.labels_of(tokens) == [[unit for unit in units if unit != SILENT] for units in expected]
    with pytest.raises(UserError, match="HLG_chain.pt does not exist: make it with compile_hlg --topology chain"):
        toy.make_method("1best", lang_dir=tmp_path, topology=CHAIN)


@pytest.mark.k2
def test_a_graph_of_the_other_topology_is_refused(lang: tuple[Path, BackoffModel], tmp_path: Path) -> None:
    for name in ("words.txt", "HLG.pt", "HLG_chain.pt"):
        other = {"HLG.pt": "HLG_chain.pt", "HLG_chain.pt": "HLG.pt"}.get(name, name)
        (tmp_path / other).write_bytes((lang[0] / name).read_bytes())
    for topology in (CTC, CHAIN):
        with pytest.raises(UserError, match=f"is for another topology than .*: compile it with --topology {topology}"):
            toy.make_method("1best", lang_dir=tmp_path, topology=topology)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_greedy_search_against_every_path(frames: int) -> None:
    log_probs = toy.random_log_probs(frames, 12, 4, CLASSES)
    for x, best in zip(log_probs, ctc_greedy_search(log_probs, torch.full((12,), frames), CHAIN), strict=True):
        score, units = max((score, units) for units, score in best_alignments(x[:frames]).items())
        assert best.labels == tuple(unit for unit in units if unit != SILENT)
        assert best.total == pytest.approx(score, abs=1e-5)
    [nothing] = ctc_greedy_search(log_probs[:1], torch.tensor([0]), CHAIN)
    assert nothing.labels == () and nothing.total == 0.0


@pytest.mark.k2
def test_greedy_search_is_k2s_best_path() -> None:
    log_probs, lens = toy.random_log_probs(9, 6, 60, CLASSES), torch.tensor([60, 59, 31, 7, 2, 1])
    method = toy.make_method("ctc-decoding", spells_words=True, topology=CHAIN, search=WIDE)
    found = ctc_greedy_search(log_probs, lens, CHAIN)
    for own, [theirs] in zip(found, method.nbest(NetworkOutput(lens, log_probs)), strict=True):
        assert own.labels == theirs.labels and own.total == pytest.approx(theirs.total, abs=1e-3)
