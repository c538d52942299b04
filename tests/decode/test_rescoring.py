"""Neural language models in decoding, against every word sequence of a lattice and every token sequence of a beam."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from lowbit_k2.core.lm import LstmLmConfig, TransformerLmConfig
from lowbit_k2.data.tokenizer import WordTokenizer
from lowbit_k2.decode.hypothesis import Hypothesis, Scales
from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.decode.method import METHODS, NetworkOutput, Setup
from lowbit_k2.decode.neural_lm import NeuralTokenLm, sentence_log_probs
from lowbit_k2.decode.rescoring import Rescored, ScoredLists
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import estimate, write_arpa
from lowbit_k2.models import make_model
from lowbit_k2.models.lm import LanguageModel
from lowbit_k2.recipe.compile_g import compile_g
from tests.decode import toy
from tests.decode.toy import make_method
from tests.decode.toy_transducer import all_alignments, log_sum, make_transducer

WORDS = WordTokenizer(["A", "AT", "TO"])  # EH is <unk>
TRANSFORMER = TransformerLmConfig(6, d_model=8, num_layers=2, num_heads=2, ffn_dim=8)
CONFIGS = [TRANSFORMER, LstmLmConfig(6, d_model=8, num_layers=2)]
BOUNDARY = 1


def lm_of(config, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    model = make_model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model.eval()


@torch.no_grad()
def by_definition(model: LanguageModel, units: list[int]) -> float:
    """log P of a sentence and its end, unit by unit, each from all before it."""
    whole, total = [BOUNDARY, *units, BOUNDARY], 0.0
    for place in range(1, len(whole)):
        logits = model(torch.tensor([whole[:place]]))[0, -1].double()
        total += float(logits.log_softmax(-1)[whole[place]])
    return total


@pytest.mark.parametrize("config", CONFIGS)
def test_sentences_score_as_alone(config) -> None:
    model = lm_of(config)
    sentences = [[3], [], [4, 3, 5, 2], [3, 3], [5], [2, 3, 4, 5, 5, 5, 5]]
    expected = [by_definition(model, units) for units in sentences]
    for batch_tokens in (1, 7, 100):
        assert sentence_log_probs(model, sentences, BOUNDARY, batch_tokens) == pytest.approx(expected, abs=1e-5)
    assert sentence_log_probs(model, [], BOUNDARY) == []


@pytest.mark.parametrize("config", CONFIGS)
def test_token_scores_are_those_of_whole_histories(config) -> None:
    """Also of histories that the call before did not have, and ends of those that have gone."""
    model = lm_of(config)
    lm = NeuralTokenLm(model, BOUNDARY, ["a"] * 6, ["a"] * 6)

    @torch.no_grad()
    def expected(histories):
        rows = [model(torch.tensor([[BOUNDARY, *history]]))[0, -1].double().log_softmax(-1) for history in histories]
        return torch.stack(rows)

    for histories in ([()], [(3,), (4,)], [(3, 5), (3,)], [(2, 2, 4), (3, 5, 3)], [(4,), (3, 5, 3, 3)], [(), (5,)]):
        torch.testing.assert_close(lm(histories).double(), expected(histories), atol=1e-5, rtol=0)
        torch.testing.assert_close(lm.ends(histories), expected(histories)[:, BOUNDARY], atol=1e-5, rtol=0)
    lm([(5, 3)])
    gone = [(5,), (2, 2)]
    torch.testing.assert_close(lm.ends(gone), expected(gone)[:, BOUNDARY], atol=1e-5, rtol=0)
    assert len(lm.known) <= 3, "what is remembered does not grow"


def test_other_units_are_refused() -> None:
    with pytest.raises(UserError, match="other units than the recogniser has .first 'b'.: train it on these"):
        NeuralTokenLm(lm_of(TRANSFORMER), BOUNDARY, ["a", "b"], ["a", "c"])
    with pytest.raises(UserError, match="first 'the number of them'"):
        NeuralTokenLm(lm_of(TRANSFORMER), BOUNDARY, ["a"], ["a", "c"])


@pytest.mark.parametrize("config", CONFIGS)
def test_shallow_fusion_against_all_token_sequences(config) -> None:
    vocab, lm_scale = 4, 0.6
    transducer = make_transducer(3, vocab)
    model = lm_of(replace(config, vocab_size=vocab))
    pieces = toy.ToyUnits(vocab).pieces()
    encoder_out = torch.randn(2, 4, transducer.config.d_model, generator=torch.Generator().manual_seed(1))
    setup = Setup(
        toy.ToyUnits(vocab),
        transducer,
        SearchConfig(beam_size=500, lm_scale=lm_scale),
        token_scorer=NeuralTokenLm(model, BOUNDARY, pieces, pieces),
    )
    output = NetworkOutput(torch.tensor([4, 3]), encoder_out=encoder_out)
    found = METHODS["modified_beam_search"](setup).nbest(output, 1000)
    for n, frames in enumerate((4, 3)):
        expected = {
            tokens: log_sum(scores) + lm_scale * by_definition(model, list(tokens))
            for tokens, scores in all_alignments(transducer, encoder_out[n, :frames]).items()
        }
        assert {hyp.labels for hyp in found[n]} == set(expected)
        for hyp in found[n]:
            assert hyp.total == pytest.approx(expected[hyp.labels], abs=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_density_ratio_against_all_token_sequences(config, tmp_path: Path) -> None:
    """Of the transducer, the language model and, taken off, a bigram that has not met one of the units."""
    vocab, lm_scale, lodr_scale = 4, 0.6, 0.35
    transducer, model = make_transducer(4, vocab), lm_of(replace(config, vocab_size=vocab))
    units = toy.ToyUnits(vocab)
    pieces = ["<blk>", "x", "y", "<unk>"]
    units.pieces = lambda: pieces
    bigram = estimate([["x", "y"], ["y", "y", "x"], ["x"]], 2, ["x", "y"])
    write_arpa(bigram, tmp_path / "low.arpa")
    encoder_out = torch.randn(2, 4, transducer.config.d_model, generator=torch.Generator().manual_seed(1))
    setup = Setup(
        units,
        transducer,
        SearchConfig(beam_size=500, lm_scale=lm_scale, lodr_scale=lodr_scale),
        token_scorer=NeuralTokenLm(model, BOUNDARY, pieces, pieces),
        lodr_lm=tmp_path / "low.arpa",
    )

    def low(tokens: tuple[int, ...]) -> float:
        spelled = ["<s>", *(pieces[i] for i in tokens), "</s>"]
        met = [place for place in range(1, len(spelled)) if spelled[place] != "<unk>"]
        return sum(math.log(bigram.probability(spelled[:place], spelled[place])) for place in met)

    output = NetworkOutput(torch.tensor([4, 3]), encoder_out=encoder_out)
    found = METHODS["modified_beam_search"](setup).nbest(output, 1000)
    changed = 0
    for n, frames in enumerate((4, 3)):
        fused, ratio = {}, {}
        for tokens, scores in all_alignments(transducer, encoder_out[n, :frames]).items():
            fused[tokens] = log_sum(scores) + lm_scale * by_definition(model, list(tokens))
            ratio[tokens] = fused[tokens] - lodr_scale * low(tokens)
        assert {hyp.labels for hyp in found[n]} == set(ratio)
        for hyp in found[n]:
            assert hyp.total == pytest.approx(ratio[hyp.labels], abs=1e-4)
        changed += sorted(fused, key=fused.get) != sorted(ratio, key=ratio.get)
    assert changed


class Lists:
    """A search that finds given lists, and counts its calls."""

    calls = 0

    def search(self, output, n, references):
        self.calls += 1
        return [
            [Hypothesis((1,), -1.0, -2.0), Hypothesis((2, 1), -2.0, -2.5), Hypothesis((), -9.0, -0.5)],
            [],
            [Hypothesis((2,), -1.0, -1.0)],
        ]

    def words_of(self, labels):
        return [str(label) for label in labels]


def test_one_search_serves_all_scales() -> None:
    scores, asked = {"1": -7.0, "2 1": -1.0, "": -3.0, "2": 0.0}, []
    method = Lists()
    lists = ScoredLists(method, lambda texts: asked.append(texts) or [scores[text] for text in texts])
    output = NetworkOutput(torch.tensor([1, 1, 1]))
    found = {
        (lm, ngram): Rescored(lists, Scales(lm, ngram)).nbest(output, 2) for lm in (0.0, 0.5) for ngram in (0.0, 1.0)
    }
    assert method.calls == 1 and asked == [["1", "2 1", "", "2"]]
    assert [hyp.words for hyp in found[0.0, 1.0][0]] == [("1",), ("2", "1")]
    best = found[0.5, 1.0][0][0]
    assert best.words == ("2", "1") and best.total == pytest.approx(-2.0 - 2.5 - 0.5) and best.acoustic == -2.0
    assert found[0.5, 0.0][0][0].total == pytest.approx(-2.5)
    assert found[0.0, 0.0][1] == [] and found[0.0, 0.0][2][0].lm == 0.0
    again = Rescored(lists, Scales(1.0))
    again.nbest(output)
    assert again.shared_seconds == lists.seconds > 0
    again.nbest(NetworkOutput(torch.tensor([1, 1, 1])))
    assert again.shared_seconds == 0.0 and method.calls == 2


@pytest.mark.k2
@pytest.mark.parametrize(("name", "ngram_scale"), [("nbest", 1.0), ("whole-lattice-rescoring", 0.3)])
def test_a_lattice_rescored_against_all_its_word_sequences(tmp_path: Path, name: str, ngram_scale: float) -> None:
    lang = tmp_path / "lang"
    ngram = toy.make_lang(lang)
    if name != "nbest":
        ngram = estimate([["TO", "A", "TO"], ["EH", "EH", "TO"], ["AT"]], 3, list(toy.ENTRIES))
        write_arpa(ngram, lang / "large.arpa")
        compile_g(lang / "large.arpa", lang / "words.txt", lang / "G_4_gram.pt")
    log_probs, lens, lm_scale, scale = toy.random_log_probs(5, 4, 4), torch.tensor([4, 3, 4, 2]), 0.7, 0.8
    beams = SearchConfig(
        search_beam=200.0,
        output_beam=200.0,
        min_active_states=9999,
        num_paths=5000,
        nbest_scale=0.05,
        lm_scale=lm_scale,
    )
    scales = Scales(scale, ngram_scale)
    method = make_method(name, search=beams, lang_dir=lang, lm_dir=lang, rescoring=scales)
    model = lm_of(TRANSFORMER)
    lists = ScoredLists(
        method, lambda texts: sentence_log_probs(model, [WORDS.encode(text) for text in texts], BOUNDARY)
    )
    found = Rescored(lists, scales).nbest(NetworkOutput(lens, log_probs), 1)
    for n, length in enumerate(lens.tolist()):
        alignments = toy.all_alignments(log_probs[n, :length])
        best = (-math.inf, ())
        for words in (words for number in range(length + 1) for words in product(toy.ENTRIES, repeat=number)):
            spelled = [
                tuple(toy.TOKENS[t] for p in pronunciation for t in p)
                for pronunciation in product(*(toy.ENTRIES[word] for word in words))
            ]
            scores = [score for tokens in spelled for score in alignments.get(tokens, [])]
            if scores:
                own = scale * by_definition(model, WORDS.encode(" ".join(words)))
                lm = ngram_scale * lm_scale * toy.graph_score(words, ngram)
                best = max(best, (log_sum(scores) + lm + own, words))
        assert found[n][0].words == best[1]
        assert found[n][0].total == pytest.approx(best[0], abs=1e-3)


@pytest.mark.k2
def test_a_token_lattice_rescored_against_all_its_sequences() -> None:
    """CTC without any graph of words."""
    log_probs, lens, scales = toy.random_log_probs(6, 3, 4), torch.tensor([4, 3, 4]), Scales(0.8)
    beams = SearchConfig(search_beam=200.0, output_beam=200.0, num_paths=5000, nbest_scale=0.05)
    method = make_method("ctc-decoding", True, search=beams, rescoring=scales)
    model, words = lm_of(TRANSFORMER), WordTokenizer(["1", "2"])
    lists = ScoredLists(method, lambda texts: sentence_log_probs(model, [words.encode(t) for t in texts], BOUNDARY))
    found = Rescored(lists, scales).nbest(NetworkOutput(lens, log_probs), 999)
    for n, length in enumerate(lens.tolist()):
        expected = {
            tokens: log_sum(scores) + scales.lm_scale * by_definition(model, words.encode(" ".join(map(str, tokens))))
            for tokens, scores in toy.all_alignments(log_probs[n, :length]).items()
        }
        assert {hyp.labels: hyp.total for hyp in found[n]} == pytest.approx(expected, abs=1e-3)
