"""Transducer lattices of k2 against all alignments, on the graph of all tokens and on LG."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowbit_k2.decode.fast_beam import any_tokens, keep_final_scores, transducer_lattice
from lowbit_k2.decode.lattice import SearchConfig, one_best
from lowbit_k2.decode.method import NetworkOutput
from lowbit_k2.decode.methods import load_graph
from lowbit_k2.decode.nbest import keep_lm_scores
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import BackoffModel
from tests.decode import toy
from tests.decode.toy import labels_of, make_method, words_of
from tests.decode.toy_transducer import all_alignments, log_sum, make_transducer

pytestmark = pytest.mark.k2
WIDE = SearchConfig(search_beam=200.0, max_states=9999, max_contexts=9999, num_paths=3000, nbest_scale=0.05)
LENS = torch.tensor([4, 5, 3, 5, 1, 5])


@pytest.fixture(scope="module")
def lang(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BackoffModel]:
    path = tmp_path_factory.mktemp("toy") / "lang"
    return path, toy.make_lang(path)


@pytest.fixture(scope="module")
def encoder_out() -> Tensor:
    return torch.randn(len(LENS), 5, 16, generator=torch.Generator().manual_seed(3))


def decode(method: str, model, encoder_out: Tensor, config: SearchConfig, lang_dir: Path | None = None):
    made = make_method(method, True, model=model, search=config, lang_dir=lang_dir)
    return made.nbest(NetworkOutput(LENS, encoder_out=encoder_out), 999)


@pytest.mark.parametrize("context_size", [1, 2])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_best_alignment_of_all(context_size: int, penalty: float, encoder_out: Tensor) -> None:
    model = make_transducer(5, 3, context_size)
    config = SearchConfig(**{**vars(WIDE), "blank_penalty": penalty})
    lattice = transducer_lattice(model, encoder_out, LENS, any_tokens(3), config)
    found = one_best(lattice)
    scores = lattice.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
    sums = lattice.get_tot_scores(use_double_scores=True, log_semiring=True).tolist()
    for n, (frames, length) in enumerate(zip(encoder_out, LENS, strict=True)):
        alignments = all_alignments(model, frames[:length], penalty)
        best, tokens = max((max(values), y) for y, values in alignments.items())
        assert found[n][0].labels == tokens and found[n][0].total == scores[n] == pytest.approx(best, abs=1e-4)
        assert sums[n] == pytest.approx(0.0, abs=1e-4), "all alignments are in the lattice, once"
    as_words = decode("fast_beam_search", model, encoder_out, config)
    assert words_of(as_words) == [list(map(str, labels)) for labels in labels_of(found)]


def test_nbest_sums_alignments(encoder_out: Tensor) -> None:
    model = make_transducer(5, 3)
    found = decode("fast_beam_search_nbest", model, encoder_out, WIDE)
    for frames, length, nbest in zip(encoder_out, LENS, found, strict=True):
        totals = {y: log_sum(values) for y, values in all_alignments(model, frames[:length]).items()}
        assert nbest[0].labels == max(totals, key=totals.get)
        assert {h.labels: h.total for h in nbest} == pytest.approx(totals, abs=1e-4), "all of them, with their scores"
        assert all(a.total >= b.total and a.lm == 0 for a, b in zip(nbest, nbest[1:], strict=False))
    best = decode("fast_beam_search", model, encoder_out, WIDE)
    assert labels_of(found) != labels_of(best), "the sums matter in this model"


@pytest.mark.parametrize("lm_scale", [1.0, 0.3])
def test_lg_against_all_word_sequences(lang: tuple[Path, BackoffModel], lm_scale: float, encoder_out: Tensor) -> None:
    path, lm = lang
    model = make_transducer(5, 3)
    config = SearchConfig(**{**vars(WIDE), "lm_scale": lm_scale})
    one, summed = (decode(f"fast_beam_search{name}_LG", model, encoder_out, config, path) for name in ("", "_nbest"))
    graph = keep_final_scores(keep_lm_scores(load_graph(path / "LG.pt", 3, lm_scale, "cpu")))
    lattice = transducer_lattice(model, encoder_out, LENS, graph, config)
    scores = lattice.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
    for n, (frames, length) in enumerate(zip(encoder_out, LENS, strict=True)):
        best, total, by_lm = {}, {}, {}
        alignments = all_alignments(model, frames[:length])
        for number in range(int(length) + 1):
            for words in product(toy.ENTRIES, repeat=number):
                values = lm_scale * toy.graph_score(words, lm)
                tokens = [
                    tuple(toy.TOKENS[t] for p in spelled for t in p)
                    for spelled in product(*(toy.ENTRIES[w] for w in words))
                ]
                possible = [score + values for y in tokens for score in alignments.get(y, [])]
                if possible:
                    best[words], total[words], by_lm[words] = max(possible), log_sum(possible), values
        assert scores[n] == pytest.approx(max(best.values()), abs=1e-4)
        assert best[one[n][0].words] == pytest.approx(max(best.values()), abs=1e-4)
        assert one[n][0].lm == pytest.approx(by_lm[one[n][0].words], abs=1e-4)
        assert total[summed[n][0].words] == pytest.approx(max(total.values()), abs=1e-4)
        for hypothesis in summed[n]:
            assert hypothesis.total == pytest.approx(total[hypothesis.words], abs=1e-4)
            assert hypothesis.lm == pytest.approx(by_lm[hypothesis.words], abs=1e-4)
        assert len(summed[n]) > 0.8 * len(total)


def test_narrow_beams_still_give_paths(encoder_out: Tensor) -> None:
    model = make_transducer(5, 3)
    with pytest.raises(UserError, match="max_states must be at least 2"):
        SearchConfig(max_states=1)
    narrow = SearchConfig(search_beam=0.1, max_states=2, max_contexts=1)
    lattice = transducer_lattice(model, encoder_out, LENS, any_tokens(3), narrow)
    assert all(one_best(lattice)), "however narrow the beam, an utterance can end"
    method = make_method("fast_beam_search", True, model=model, search=narrow)
    found = method.nbest(NetworkOutput(torch.where(LENS == 1, 0, LENS), encoder_out=encoder_out))
    assert [bool(nbest) for nbest in found] == (LENS > 1).tolist()
