"""The stages train_bpe and prepare_lang: their files, idempotence, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.lexicon import read_lexicon, read_symbols
from lowbit_k2.recipe.prepare_lang import prepare_lang
from lowbit_k2.recipe.train_bpe import train_bpe


@pytest.fixture
def transcript(tmp_path: Path) -> Path:
    path = tmp_path / "train.txt"
    path.write_text("NO NOON GO\nA AN ANT\n")
    return path


def test_character_lang_dir(tmp_path: Path, transcript: Path) -> None:
    lang = tmp_path / "lang"
    assert train_bpe(lang, transcript, "char", 0)
    assert not train_bpe(lang, transcript, "char", 0)
    prepare_lang(lang, None, None, transcript)
    tokens, words = read_symbols(lang / "tokens.txt"), read_symbols(lang / "words.txt")
    tokenizer = load_tokenizer(lang)
    assert list(tokens)[: tokenizer.vocab_size] == tokenizer.pieces()
    assert [s for s in tokens if s.startswith("#")] == ["#0", "#1"]
    assert list(words) == ["<eps>", "<UNK>", "A", "AN", "ANT", "GO", "NO", "NOON", "#0", "<s>", "</s>"]
    assert dict(read_lexicon(lang / "lexicon.txt"))["NO"] == ("▁", "N", "O")
    lines = (lang / "lexicon_disambig.txt").read_text().splitlines()
    marked = {word: tokens for word, *tokens in map(str.split, lines)}
    assert marked["NO"][-1] == "#1" and marked["A"][-1] == "#1" and marked["ANT"][-1] == "T"


def test_phone_lang_dir(tmp_path: Path) -> None:
    lexicon = tmp_path / "dict.txt"
    lexicon.write_text("AND AE N D\nAND(2) AH N D\nA AH\nOF AH V\n")
    words = tmp_path / "words.txt"
    words.write_text("A\nAND\n")
    lang = tmp_path / "lang"
    prepare_lang(lang, lexicon, words, None)
    assert list(read_symbols(lang / "tokens.txt")) == ["<blk>", "AE", "AH", "D", "N", "#0", "#1"]
    assert [w for w, _ in read_lexicon(lang / "lexicon.txt")] == ["A", "AND", "AND"]
    assert load_tokenizer(lang).encode("AND A") == [1, 4, 3, 2]
    words.write_text("A\nBE\n")
    with pytest.raises(UserError, match="no pronunciation for 1 words .BE."):
        prepare_lang(lang, lexicon, words, None)


def test_refusals(tmp_path: Path, transcript: Path) -> None:
    lang = tmp_path / "lang"
    with pytest.raises(UserError, match="run train_bpe"):
        prepare_lang(lang, None, None, transcript)
    with pytest.raises(UserError, match="refuses --vocab-size 900"):
        train_bpe(lang, transcript, "bpe", 900)
    assert not lang.exists() or not any(lang.iterdir())
    with pytest.raises(UserError, match="does not exist"):
        train_bpe(lang, tmp_path / "none.txt", "char", 0)
    train_bpe(lang, transcript, "char", 0)
    with pytest.raises(UserError, match="other flags"):
        train_bpe(lang, transcript, "bpe", 12)
    other = tmp_path / "other.txt"
    other.write_text("ZEBRA\n")
    with pytest.raises(UserError, match="word ZEBRA has characters unknown"):
        prepare_lang(lang, None, None, other)
