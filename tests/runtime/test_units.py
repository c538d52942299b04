"""Words of the runtime against those of the tokenizers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit_k2.data.tokenizer import LexiconTokenizer, SentencePieceTokenizer, Tokenizer, tokenizer_from_bytes
from lowbit_k2.errors import UserError
from lowbit_k2.recipe.train_bpe import train_sentencepiece
from lowbit_k2.runtime.units import MAX_BYTES, read_units

SENTENCES = ["DIE KATZE LIEGT AUF DER MATTE", "EINE GANS IM GRAS", "ÄPFEL UND ÖL <IM> EIMER", "THE LOW BITS"] * 3
PHONES = {"<blk>": 0, "SIL": 1, "AH": 2, "Ö": 3, "SPN": 4}
TOKENIZERS = {
    "char": SentencePieceTokenizer(train_sentencepiece(SENTENCES, "char", 0)),
    "bpe": SentencePieceTokenizer(train_sentencepiece(SENTENCES, "bpe", 45)),
    "unigram": SentencePieceTokenizer(train_sentencepiece(SENTENCES, "unigram", 36)),
    "phones": LexiconTokenizer(PHONES, [("ah", ("AH",)), ("öl", ("Ö", "AH"))]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_are_those_of_the_tokenizer(name: str) -> None:
    tokenizer: Tokenizer = TOKENIZERS[name]
    units = read_units(tokenizer.kind, tokenizer.to_bytes())
    assert list(units.pieces) == tokenizer.pieces()
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(30))]
        assert units.words(ids) == tokenizer.decode(ids).split()
    assert units.words([]) == []


@pytest.mark.parametrize("name", ["char", "bpe"])
@given(st.data())
def test_damaged_tokens_are_refused_or_read(name: str, data: st.DataObject) -> None:
    content = bytearray(TOKENIZERS[name].to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    try:
        assert all(isinstance(piece, str) for piece in read_units("sentencepiece", bytes(content)).pieces)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "kind, data, message",
    [
        ("words", b"", "unknown kind of tokenizer 'words'"),
        ("sentencepiece", b"", "the first token is not <blk>"),
        ("sentencepiece", b"no model", "no sentencepiece model"),
        ("sentencepiece", b"\xff" * 20, "no sentencepiece model"),
        ("lexicon", b"{}", "no lexicon tokenizer"),
        ("lexicon", b"[" * 99999, "no lexicon tokenizer"),
        ("lexicon", b'{"tokens": ["<blk>", 3]}', "no lexicon tokenizer"),
        ("lexicon", b'{"tokens": ["A", "<blk>"]}', "the first token is not <blk>"),
    ],
)
def test_what_is_no_tokenizer(kind: str, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_units(kind, data)
    with pytest.raises(UserError):
        tokenizer_from_bytes(kind, data)


def test_a_tokenizer_that_would_take_long() -> None:
    """64 kB of a file can stand for 64 MB of fields of two bytes."""
    with pytest.raises(UserError, match="a tokenizer of 8388609 bytes, at most 8388608 are read"):
        read_units("sentencepiece", bytes(MAX_BYTES + 1))
