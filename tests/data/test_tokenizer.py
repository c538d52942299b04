"""Tokenizers: text comes back, ids are icefall's, bytes rebuild them, damage is one line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit_k2.data.tokenizer import LexiconTokenizer, SentencePieceTokenizer, load_tokenizer, tokenizer_from_bytes
from lowbit_k2.errors import UserError
from lowbit_k2.recipe.train_bpe import train_sentencepiece

TEXT = ["YES NO STOP", "GO ONE TWO THREE", "ENTER SIX SEVEN", "ERASE M N Y H", "REPEAT NINE ZERO"] * 4
LETTERS = "".join(sorted(set("".join(TEXT)) - {" "}))


@pytest.fixture(scope="module", params=["char", "bpe"])
def spelled(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(TEXT, request.param, 40))


@pytest.fixture
def phones() -> LexiconTokenizer:
    tokens = {"<blk>": 0, "AE": 1, "AH": 2, "N": 3, "D": 4, "#0": 5, "#1": 6}
    return LexiconTokenizer(tokens, [("A", ("AH",)), ("AND", ("AE", "N", "D")), ("AND", ("AH", "N", "D"))])


def test_special_pieces_are_icefalls(spelled: SentencePieceTokenizer) -> None:
    assert spelled.pieces()[:3] == ["<blk>", "<sos/eos>", "<unk>"]


@given(st.lists(st.text(LETTERS, min_size=1, max_size=6), max_size=5))
@settings(max_examples=50, deadline=None)
def test_text_comes_back(spelled: SentencePieceTokenizer, words: list[str]) -> None:
    text = " ".join(words)
    ids = spelled.encode(text)
    assert spelled.decode(ids) == text
    assert all(2 < i < spelled.vocab_size for i in ids)


def test_characters_that_no_unit_spells_are_named(spelled: SentencePieceTokenizer) -> None:
    assert spelled.unknown("YES NO") == spelled.unknown("") == ""
    assert spelled.unknown("YES no ÖN no") == "noÖ"
    assert spelled.unknown("yes") == "yes"


def test_blank_and_specials_are_left_out(spelled: SentencePieceTokenizer) -> None:
    ids = spelled.encode("YES NO")
    assert spelled.decode([0, *ids, 0, 1, 2]) == "YES NO"


def test_character_model_spells_letters() -> None:
    tokenizer = SentencePieceTokenizer(train_sentencepiece(TEXT, "char", 1))
    assert sorted(tokenizer.pieces()[3:]) == sorted([*LETTERS, "▁"])
    assert [tokenizer.pieces()[i] for i in tokenizer.encode("NO GO")] == ["▁", "N", "O", "▁", "G", "O"]


def test_training_is_deterministic() -> None:
    assert train_sentencepiece(TEXT, "bpe", 40) == train_sentencepiece(list(TEXT), "bpe", 40)


def test_phones_take_the_first_pronunciation(phones: LexiconTokenizer) -> None:
    assert phones.encode("A AND") == [2, 1, 3, 4]
    assert phones.decode([0, 2, 0, 1, 3, 4]) == "AH AE N D"
    assert phones.vocab_size == 5
    assert not phones.spells_words


def test_phones_have_no_unknown_characters(phones: LexiconTokenizer) -> None:
    assert phones.unknown("A and B") == ""  # whole words are refused


def test_phones_refuse_an_unknown_word(phones: LexiconTokenizer) -> None:
    with pytest.raises(UserError, match="word OF is not in the lexicon"):
        phones.encode("A OF")


def test_bytes_rebuild_both_kinds(spelled: SentencePieceTokenizer, phones: LexiconTokenizer) -> None:
    for tokenizer, text in ((spelled, "GO ONE"), (phones, "AND A")):
        again = tokenizer_from_bytes(tokenizer.kind, tokenizer.to_bytes())
        assert again.pieces() == tokenizer.pieces()
        assert again.encode(text) == tokenizer.encode(text)
        assert again.to_bytes() == tokenizer.to_bytes()


@pytest.mark.parametrize(
    "kind, data", [("sentencepiece", b"xyz"), ("lexicon", b"{}"), ("lexicon", b"\xff"), ("x", b"")]
)
def test_damaged_bytes_are_a_user_error(kind: str, data: bytes) -> None:
    with pytest.raises(UserError):
        tokenizer_from_bytes(kind, data)


def test_load_names_the_missing_stage(tmp_path) -> None:
    with pytest.raises(UserError, match="run train_bpe or prepare_lang"):
        load_tokenizer(tmp_path)
    (tmp_path / "lexicon.txt").write_text("A AH\n")
    (tmp_path / "tokens.txt").write_text("AH 0\n<blk> 1\n")
    with pytest.raises(UserError, match="<blk> as 0"):
        load_tokenizer(tmp_path)
