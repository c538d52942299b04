"""The stage make_lm: which words get n-grams, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.recipe.make_lm import make_lm, make_token_lm


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path, Path]:
    words, transcript = tmp_path / "words.txt", tmp_path / "train.txt"
    words.write_text("<eps> 0\n<UNK> 1\nA 2\nB 3\nNEVER 4\n#0 5\n<s> 6\n</s> 7\n")
    transcript.write_text("A B\n\nB OTHER A\n")
    return transcript, words, tmp_path / "lm.arpa"


def ngrams(arpa: Path) -> set[str]:
    return {line.split("\t")[1] for line in arpa.read_text().splitlines() if "\t" in line}


def test_vocabulary(inputs: tuple[Path, Path, Path]) -> None:
    transcript, words, arpa = inputs
    assert make_lm(transcript, 2, words, arpa) == [4, 5]
    unigrams = {"<s>", "</s>", "A", "B", "NEVER"}
    assert ngrams(arpa) == unigrams | {"<s> A", "<s> B", "A B", "B </s>", "A </s>"}
    make_lm(transcript, 2, words, arpa, unknown="<UNK>")
    assert ngrams(arpa) == unigrams | {"<UNK>", "<s> A", "<s> B", "A B", "B </s>", "A </s>", "B <UNK>", "<UNK> A"}


def test_refusals(inputs: tuple[Path, Path, Path]) -> None:
    transcript, words, arpa = inputs
    with pytest.raises(UserError, match="--unknown-word"):
        make_lm(transcript, 2, words, arpa, unknown="<oov>")
    transcript.write_text("\n")
    with pytest.raises(UserError, match="no sentence"):
        make_lm(transcript, 2, words, arpa)
    assert not arpa.exists()


def test_words_that_words_txt_lacks(inputs: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    transcript, words, arpa = inputs
    make_lm(transcript, 2, words, arpa)
    said = f"1 of 5 words of {transcript} (20.0%) are not in {words}, most often OTHER"
    assert capsys.readouterr().out == f"warning: {said}\n"
    transcript.write_text("A B\n" * 20 + "C\n")
    make_lm(transcript, 2, words, arpa)
    assert capsys.readouterr().out.startswith("1 of 41 words")
    transcript.write_text("a b\nb\n")
    with pytest.raises(UserError, match="no word of .*train.txt is in .*words.txt, the commonest is b"):
        make_lm(transcript, 2, words, arpa)


def test_units_with_and_without_silence(inputs: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A phone that no transcript has is named; silence is a unit of the chain topology alone."""
    transcript, _, arpa = inputs
    lang = arpa.parent / "lang"
    lang.mkdir()
    (lang / "tokens.txt").write_text("<blk> 0\nX 1\nY 2\nZ 3\n#0 4\n")
    (lang / "lexicon.txt").write_text("A X\nB Y\nC Z\n")
    transcript.write_text("A B\nB A A\n" * 20)
    make_token_lm(transcript, 2, lang, arpa)
    said = capsys.readouterr().out
    assert said == f"warning: 1 of 3 units do not occur in {transcript} (Z): no model learns them from it\n"
    plain = ngrams(arpa)
    assert {"Z", "X Y", "<s> X"} <= plain and not any("<blk>" in ngram for ngram in plain)
    make_token_lm(transcript, 2, lang, arpa, topology="chain")
    with_silence = ngrams(arpa)
    assert {"<blk>", "<s> <blk>", "<blk> </s>", "X <blk>", "<blk> X", "X Y", "<s> X"} <= with_silence
    assert "<blk> <blk>" not in with_silence
    transcript.write_text("A OTHER\n")
    for topology in ("ctc", "chain"):
        with pytest.raises(UserError, match="OTHER is not in the lexicon: add its pronunciation"):
            make_token_lm(transcript, 2, lang, arpa, topology=topology)
