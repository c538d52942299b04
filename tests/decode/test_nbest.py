"""N-best lists and rescoring of CTC lattices, against all alignments of all word sequences."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from lowbit_k2.decode.hypothesis import Nbest, Scales
from lowbit_k2.decode.lattice import SearchConfig, make_lattice
from lowbit_k2.decode.method import NetworkOutput
from lowbit_k2.decode.methods import load_graph
from lowbit_k2.decode.nbest import draw, keep_lm_scores
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import BackoffModel, estimate, write_arpa
from lowbit_k2.recipe.compile_g import compile_g
from tests.decode import toy
from tests.decode.toy import make_method, words_of
from tests.decode.toy_transducer import log_sum

pytestmark = pytest.mark.k2
WIDE = SearchConfig(search_beam=200.0, output_beam=200.0, min_active_states=9999, num_paths=5000, nbest_scale=0.05)
LENS = torch.tensor([5, 4, 3, 5, 5, 1, 4, 5])


@pytest.fixture(scope="module")
def lang(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BackoffModel, BackoffModel]:
    """The folder, the bigram in HLG, and a trigram of other sentences in G_4_gram.pt."""
    path = tmp_path_factory.mktemp("toy") / "lang"
    bigram = toy.make_lang(path)
    trigram = estimate(
        [line.split() for line in ["TO A", "TO A TO", "EH EH TO A", "AT AT", "TO"]], 3, list(toy.ENTRIES)
    )
    write_arpa(trigram, path / "large.arpa")
    compile_g(path / "large.arpa", path / "words.txt", path / "G_4_gram.pt")
    return path, bigram, trigram


def alignments_of_words(log_probs: torch.Tensor) -> dict[tuple[str, ...], list[float]]:
    """Acoustic scores of all alignments of all word sequences."""
    scores = toy.all_alignments(log_probs)
    found = {}
    for number in range(len(log_probs) + 1):
        for words in product(toy.ENTRIES, repeat=number):
            for pronunciation in product(*(toy.ENTRIES[w] for w in words)):
                tokens = tuple(toy.TOKENS[t] for p in pronunciation for t in p)
                if tokens in scores:
                    found.setdefault(words, []).extend(scores[tokens])
    return found


def decode(
    method: str, path: Path, log_probs: torch.Tensor, config: SearchConfig, references=None, rescoring=None
) -> list[Nbest]:
    made = make_method(method, search=config, lang_dir=path, lm_dir=path, rescoring=rescoring)
    return made.nbest(NetworkOutput(LENS, log_probs), 9999, references)


@pytest.mark.parametrize("lm_scale", [1.0, 0.4])
def test_all_methods_against_all_word_sequences(lang: tuple[Path, BackoffModel, BackoffModel], lm_scale: float) -> None:
    path, bigram, trigram = lang
    config = SearchConfig(**{**vars(WIDE), "lm_scale": lm_scale})
    log_probs = toy.random_log_probs(8, len(LENS), 5)
    found = {
        method: decode(method, path, log_probs, config)
        for method in ("1best", "nbest", "nbest-rescoring", "whole-lattice-rescoring")
    }
    # what is to be rescored are lists, whatever the method
    for method in ("1best", "whole-lattice-rescoring"):
        found[f"{method} nbest"] = decode(method, path, log_probs, config, rescoring=Scales(1.0))
    for n, (x, length) in enumerate(zip(log_probs, LENS, strict=True)):
        acoustic = alignments_of_words(x[:length])
        first = {words: lm_scale * toy.graph_score(words, bigram) for words in acoustic}
        second = {words: lm_scale * toy.graph_score(words, trigram) for words in acoustic}
        for method, alignments, lm in (
            ("1best", max, first),
            ("nbest", log_sum, first),
            ("nbest-rescoring", log_sum, second),
            ("whole-lattice-rescoring", max, second),
            ("1best nbest", log_sum, first),
            ("whole-lattice-rescoring nbest", log_sum, second),
        ):
            expected = {words: alignments(scores) + lm[words] for words, scores in acoustic.items()}
            own = found[method][n]
            assert expected[own[0].words] == pytest.approx(max(expected.values()), abs=1e-4), (method, n)
            assert {h.words: h.total for h in own} == pytest.approx({h.words: expected[h.words] for h in own}, abs=1e-4)
            assert {h.words: h.lm for h in own} == pytest.approx({h.words: lm[h.words] for h in own}, abs=1e-4)
            assert len(own) > 0.85 * len(acoustic) if "nbest" in method else len(own) == 1
            assert [h.total for h in own] == sorted((h.total for h in own), reverse=True)
    assert words_of(found["1best"]) != words_of(found["whole-lattice-rescoring"]), "the language models differ"


def test_scores_are_sums_over_all_alignments(lang: tuple[Path, BackoffModel, BackoffModel]) -> None:
    path, bigram, _ = lang
    words = {int(line.split()[1]): line.split()[0] for line in (path / "words.txt").read_text().splitlines()}
    log_probs = toy.random_log_probs(9, len(LENS), 5)
    lattice = make_lattice(
        log_probs, LENS, keep_lm_scores(load_graph(path / "HLG.pt", toy.NUM_CLASSES, 1.0, "cpu")), WIDE
    )
    for x, length, drawn in zip(log_probs, LENS, draw(lattice, 20000, 0.05), strict=True):
        acoustic = alignments_of_words(x[:length])
        spelled = {tuple(words[i] for i in hypothesis.labels): hypothesis for hypothesis in drawn}
        assert len(spelled) == len(drawn)
        assert set(spelled) == set(acoustic), "no sentence is lost in the graph, homophones before a back-off included"
        for sequence, hypothesis in spelled.items():
            assert hypothesis.acoustic == pytest.approx(log_sum(acoustic[sequence]), abs=1e-4)
            assert hypothesis.lm == pytest.approx(toy.graph_score(sequence, bigram), abs=1e-4)


def test_oracle(lang: tuple[Path, BackoffModel, BackoffModel]) -> None:
    path, _, _ = lang
    log_probs = toy.random_log_probs(10, len(LENS), 5)
    references = [["TO", "A"], ["AT"], ["UNKNOWN"], ["EH", "EH"], [], ["A"], ["TO", "TO"], ["A", "AT"]]
    found = words_of(decode("nbest-oracle", path, log_probs, WIDE, references))
    assert [f for f, r in zip(found, references, strict=True) if "UNKNOWN" not in r] == [
        r for r in references if "UNKNOWN" not in r
    ], "with paths enough, every possible sentence is among them"
    assert len(found[2]) <= 1
    few = words_of(decode("nbest-oracle", path, log_probs, SearchConfig(num_paths=1), references))
    assert few != found
    with pytest.raises(UserError, match="needs references"):
        decode("nbest-oracle", path, log_probs, WIDE)


def test_missing_grammar(lang: tuple[Path, BackoffModel, BackoffModel], tmp_path: Path) -> None:
    path, _, _ = lang
    with pytest.raises(UserError, match="lm_dir with G_4_gram.pt is needed"):
        make_method("nbest-rescoring", lang_dir=path)
    with pytest.raises(UserError, match="compile_g"):
        make_method("whole-lattice-rescoring", lang_dir=path, lm_dir=tmp_path)


def test_grammar_is_made_once(lang: tuple[Path, BackoffModel, BackoffModel], tmp_path: Path) -> None:
    path, _, _ = lang
    inputs = (path / "large.arpa", path / "words.txt", tmp_path / "G.pt")
    assert compile_g(*inputs) and not compile_g(*inputs)
    with pytest.raises(UserError, match="none.arpa does not exist"):
        compile_g(path / "none.arpa", *inputs[1:])
