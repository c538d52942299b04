"""The n-gram of shallow fusion, against the model that was estimated, and from make_lm to a search."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest
import torch

from lowbit_k2.data.tokenizer import SentencePieceTokenizer
from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.decode.method import NetworkOutput, Setup
from lowbit_k2.decode.token_lm import TokenLm
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import estimate, write_arpa
from lowbit_k2.recipe.make_lm import make_token_lm
from lowbit_k2.recipe.train_bpe import train_sentencepiece
from tests.decode.toy import labels_of, make_method
from tests.decode.toy_transducer import all_alignments, log_sum, make_transducer

PIECES = ["<blk>", "<sos/eos>", "a", "b", "c"]
TEXT = ["a b a", "b b c", "a c", "c a b a b", "a"]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_rows_are_the_models_probabilities(order: int) -> None:
    model = estimate([line.split() for line in TEXT], order, ["a", "b", "c"])
    lm = TokenLm(model, PIECES)
    histories = [history for n in range(4) for history in product((2, 3, 4), repeat=n)]
    rows, ends = lm(histories), lm.ends(histories)
    assert rows.shape == (len(histories), len(PIECES))
    for history, row, end in zip(histories, rows, ends, strict=True):
        context = ["<s>", *(PIECES[i] for i in history)]
        expected = [math.log(model.probability(context, piece)) for piece in "abc"]
        assert row[2:].tolist() == pytest.approx(expected)
        assert float(end) == pytest.approx(math.log(model.probability(context, "</s>")))
        assert float(row[2:].exp().sum() + end.exp()) == pytest.approx(1.0)
        assert float(row[:2].max()) < -200, "neither the blank nor a symbol that the n-gram does not know"


def test_another_models_units_are_refused(tmp_path: Path) -> None:
    write_arpa(estimate([["a", "b"]], 2, ["a", "b"]), tmp_path / "lm.arpa")
    with pytest.raises(UserError, match=r"lm.arpa: the token LM lacks 1 of the model's units, first 'c'.*make_lm"):
        TokenLm.read(tmp_path / "lm.arpa", PIECES)


def test_a_text_that_the_units_cannot_spell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bpe.model").write_bytes(train_sentencepiece(["AB BA A B"], "char", 0))
    (tmp_path / "text").write_text("ab ba\nab\n")
    with pytest.raises(UserError, match=f"no word of .*text is in {tmp_path}, the commonest is ab: are letter cases"):
        make_token_lm(tmp_path / "text", 2, tmp_path, tmp_path / "lm.arpa")
    (tmp_path / "text").write_text("AB ba\nAB\n")
    make_token_lm(tmp_path / "text", 2, tmp_path, tmp_path / "lm.arpa")
    assert "warning: 1 of 3 words" in capsys.readouterr().out


def test_from_text_to_search(tmp_path: Path) -> None:
    """`make_lm --units` and modified_beam_search: the words win that network and n-gram together like best."""
    (tmp_path / "text").write_text("AB AB\nAB\nBA AB AB\n")
    (tmp_path / "bpe.model").write_bytes(train_sentencepiece(["AB BA A B"], "char", 0))
    tokenizer = SentencePieceTokenizer((tmp_path / "bpe.model").read_bytes())
    sizes = make_token_lm(tmp_path / "text", 2, tmp_path, tmp_path / "units.arpa")
    assert len(sizes) == 2 and sizes[0] == tokenizer.vocab_size - 2 + 1, "units less blank and <sos/eos>, and </s>"
    model = make_transducer(3, tokenizer.vocab_size)
    encoder_out, lens = torch.randn(3, 3, 16), torch.tensor([3, 2, 3])
    lm = TokenLm.read(tmp_path / "units.arpa", tokenizer.pieces())
    setup = {"model": model, "token_lm": tmp_path / "units.arpa"}
    kind = type(make_method("modified_beam_search", True, model=model))
    search = SearchConfig(beam_size=6**3, lm_scale=0.5)
    method = kind(Setup(tokenizer, search=search, **setup))
    assert kind.has_lm(method.setup) and not kind.has_lm(Setup(tokenizer, model=model))
    found = method.nbest(NetworkOutput(lens, encoder_out=encoder_out), 3)
    for frames, length, nbest in zip(encoder_out, lens, found, strict=True):
        totals = {}
        for tokens, scores in all_alignments(model, frames[:length]).items():
            steps = [lm([tokens[:i]])[0, token] for i, token in enumerate(tokens)]
            totals[tokens] = log_sum(scores) + 0.5 * float(sum(steps) + lm.ends([tokens])[0])
        best = sorted(totals, key=totals.get, reverse=True)[:3]
        assert [h.labels for h in nbest] == best
        assert [h.total for h in nbest] == pytest.approx([totals[y] for y in best], abs=1e-5)
        assert [h.words for h in nbest] == [tuple(tokenizer.decode(y).split()) for y in best]
    without = kind(Setup(tokenizer, model=model, search=search)).nbest(NetworkOutput(lens, encoder_out=encoder_out))
    assert labels_of(without) != labels_of(found)
