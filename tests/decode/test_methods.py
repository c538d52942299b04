"""Greedy decoding through the methods' front door (no k2), and the flags' errors."""

from __future__ import annotations

import pytest
import torch

from lowbit_k2.data.tokenizer import SentencePieceTokenizer
from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.decode.method import METHODS, Method, NetworkOutput, Setup, parse_methods, register_method
from lowbit_k2.decode.methods import CtcGreedySearch
from lowbit_k2.errors import UserError
from lowbit_k2.recipe.train_bpe import train_sentencepiece
from tests.decode.toy import words_of


def test_greedy_gives_the_words_that_were_encoded() -> None:
    tokenizer = SentencePieceTokenizer(train_sentencepiece(["HELLO WOOD", "GO LOW"], "char", 0))
    texts = ["HELLO WOOD", "GO", ""]
    frames = [[f for i in tokenizer.encode(text) for f in (i, i, 0)] for text in texts]  # blanks part double letters
    lens = torch.tensor([len(row) for row in frames])
    scores = torch.zeros(3, int(lens.max()), tokenizer.vocab_size)  # (N, T, V)
    for n, row in enumerate(frames):
        scores[n, range(len(row)), row] = 9.0
    log_probs = scores.log_softmax(-1)
    found = CtcGreedySearch(Setup(tokenizer)).nbest(NetworkOutput(lens, log_probs))
    assert words_of(found) == [text.split() for text in texts]
    best = [float(x[:n].max(dim=-1).values.double().sum()) for x, n in zip(log_probs, lens, strict=True)]
    assert [nbest[0].total for nbest in found] == pytest.approx(best) and len(found[2]) == 1


def test_names_of_methods_are_taken_once() -> None:
    with pytest.raises(ValueError, match="'1best' is registered already, as OneBest"):
        register_method("1best")(type("Other", (Method,), {}))
    assert METHODS["1best"].name == "1best"


def test_lists_of_methods() -> None:
    assert parse_methods("ctc-greedy-search, 1best") == ["ctc-greedy-search", "1best"]
    assert parse_methods(",".join(METHODS)) == list(METHODS)
    for text in ("", "greedy", "1best,1best"):
        with pytest.raises(UserError, match="decoding_method"):
            parse_methods(text)


@pytest.mark.parametrize(
    "flags",
    [{"search_beam": 0.0}, {"output_beam": -1.0}, {"min_active_states": 9, "max_active_states": 8}, {"lm_scale": -1.0}],
)
def test_impossible_beams_are_refused(flags: dict) -> None:
    with pytest.raises(UserError):
        SearchConfig(**flags)
