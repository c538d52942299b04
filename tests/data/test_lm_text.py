"""Text for language models: every unit is told once, whatever the rows, the order or the number of ranks."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest
import torch

from lowbit_k2.data.lm_text import TextBatches, TokenText, count_words
from lowbit_k2.data.text_config import TextConfig
from lowbit_k2.data.tokenizer import (
    LexiconTokenizer,
    SentencePieceTokenizer,
    WordTokenizer,
    tokenizer_from_bytes,
)
from lowbit_k2.errors import UserError
from lowbit_k2.recipe.train_bpe import train_sentencepiece

LINES = ["A B", "C", "A A D B", "B", "E A", "C C C C C C C", "D"]
WORDS = WordTokenizer(["A", "B", "C", "D"])  # 3, 4, 5, 6; E is <unk>, 2


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text("\n".join(LINES) + "\n\n")
    return path


def batches_of(file: Path, seed: int = 1, world_size: int = 1, rank: int = 0, **options) -> TextBatches:
    config = TextConfig(**options)
    return TextBatches(TokenText.read([file], WORDS, config), config, seed, world_size, rank)


def told(batches) -> Counter:
    """The rows of batches, as what is read and told, without padding."""
    return Counter(
        (tuple(inputs[:n].tolist()), tuple(targets[:n].tolist()))
        for batch in batches
        for inputs, targets, n in zip(batch.inputs, batch.targets, batch.input_lens, strict=True)
    )


def test_words_by_their_counts(file: Path) -> None:
    counts = count_words([file], TextConfig())
    assert counts == Counter(" ".join(LINES).split())
    tokenizer = WordTokenizer.from_counts(counts, min_count=2)
    assert tokenizer.pieces() == ["<blk>", "<sos/eos>", "<unk>", "C", "A", "B", "D"]
    assert WordTokenizer.from_counts(counts, most=2).pieces()[3:] == ["C", "A"]
    assert tokenizer.encode("A E  D") == [4, 2, 6] and tokenizer.decode([1, 4, 2, 6]) == "A D"
    again = tokenizer_from_bytes("words", tokenizer.to_bytes())
    assert again.pieces() == tokenizer.pieces() and again.vocab_size == 7
    with pytest.raises(UserError, match="no word occurs 9 times: lower the cut-off"):
        WordTokenizer.from_counts(counts, min_count=9)
    for damaged in (b"", b"A\nA", b"A\n<unk>", b"A B", b"\xff"):
        with pytest.raises(UserError, match="list of words"):
            tokenizer_from_bytes("words", damaged)


def test_a_text_as_units(file: Path) -> None:
    text = TokenText.read([file], WORDS, TextConfig())
    assert text.tokens.tolist()[:10] == [1, 3, 4, 1, 5, 1, 3, 3, 6, 4]
    assert (text.words, text.sentences, text.targets) == (18, 7, 25)
    assert text.tokens[text.starts].tolist() == [1] * 8


def test_kaldi_text_gzip_and_normalisation(tmp_path: Path) -> None:
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"utt-1 a, b!\nutt-2\nutt-3  <noise> C\n"))
    text = TokenText.read([path], WORDS, TextConfig(kaldi_text=True, normalize_text="upper"))
    assert text.tokens.tolist() == [1, 3, 4, 1, 5, 1]


@pytest.mark.parametrize("pack_length", [0, 6, 100])
def test_every_epoch_tells_every_unit_once(file: Path, pack_length: int) -> None:
    data = batches_of(file, batch_tokens=10, pack_length=pack_length)
    sentences = [[1, *WORDS.encode(line)] for line in LINES]
    rows = {0: [[i] for i in range(7)], 6: [[0, 1], [2], [3, 4], [5], [6]], 100: [list(range(7))]}[pack_length]
    expected = Counter()
    for row in rows:
        read = [unit for i in row for unit in sentences[i]]
        expected[tuple(read), (*read[1:], 1)] += 1
    assert told(data.train_batches(1)) == told(data.train_batches(2)) == told(data.valid_batches()) == expected
    for batch in data.train_batches(3):
        n, longest = batch.inputs.shape
        assert n == 1 or n * longest <= 10
        assert all((row[length:] == 1).all() for row, length in zip(batch.inputs, batch.input_lens, strict=True))
    assert len(list(data.train_batches(1))) == data.num_train_batches(1)


def test_the_order_is_that_of_seed_and_epoch(file: Path) -> None:
    def order(seed: int, epoch: int, skip: int = 0) -> list[list[str]]:
        return [batch.ids for batch in batches_of(file, seed, batch_tokens=4).train_batches(epoch, skip)]

    assert order(1, 1) == order(1, 1) and order(1, 1, skip=2) == order(1, 1)[2:]
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batches_of_one(file: Path, world_size: int) -> None:
    whole = list(batches_of(file, batch_tokens=9).train_batches(1))
    shares = [
        list(batches_of(file, world_size=world_size, rank=rank, batch_tokens=9).train_batches(1))
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    ids = {name for share in shares for batch in share for name in batch.ids}
    assert ids == {name for batch in whole for name in batch.ids}
    assert [share[0].ids for share in shares] == [batch.ids for batch in whole[:world_size]]


def test_the_largest_batches_are_the_largest(file: Path) -> None:
    found = batches_of(file, batch_tokens=9).largest_batches()
    assert found["longest row"].inputs.shape == (1, 8)
    assert found["most units"].inputs.numel() == max(
        b.inputs.numel() for b in batches_of(file, batch_tokens=9).train_batches(1)
    )


def test_pieces_of_sentencepiece(file: Path) -> None:
    tokenizer = SentencePieceTokenizer(train_sentencepiece(LINES, "char", 0))
    text = TokenText.read([file], tokenizer, TextConfig())
    letters = sum(len(line) + 1 for line in LINES)  # a mark begins each word
    assert text.targets == letters + len(LINES) and text.words == 18
    assert tokenizer.decode(text.tokens[text.starts[2] : text.starts[3]].tolist()) == LINES[2]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("", {}, "text: no line has words: give a text"),
        ("\n \n", {}, "no line has words"),
        ("id-1\nid-2\n", {"kaldi_text": True}, "no line has words behind its ids"),
        ("A\n" + "A " * 100_000, {}, "text line 2 has 100000 words, over --max-length 1000: put each sentence"),
        ("A\n\x00B\n", {}, "line 2: a NUL byte"),
        (b"A\n\xff\n", {}, "line 2: byte 0xff is not UTF-8"),
        ("[noise]\n", {"normalize_text": "upper"}, "no line has words"),
    ],
)
def test_bad_text_is_one_line(tmp_path: Path, content: str | bytes, options: dict, words: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as error:
        TokenText.read([path], WORDS, TextConfig(**options))
    assert "\n" not in str(error.value)


def test_long_words_of_pieces_and_foreign_units(tmp_path: Path, file: Path) -> None:
    letters = SentencePieceTokenizer(train_sentencepiece(LINES, "char", 0))
    long = tmp_path / "long"
    long.write_text("A" * 1500)
    with pytest.raises(UserError, match="long line 1 has 1501 units, over --max-length 1000"):
        TokenText.read([long], letters, TextConfig())
    with pytest.raises(UserError, match="gone does not exist: give a text file"):
        TokenText.read([tmp_path / "gone"], letters, TextConfig())
    phones = LexiconTokenizer({"<blk>": 0, "a": 1}, [("A", ("a",))])
    with pytest.raises(UserError, match="a language model needs words or pieces with <sos/eos> and <unk>"):
        TokenText.read([file], phones, TextConfig())


def test_padding_is_that_of_the_batch(file: Path) -> None:
    batch = batches_of(file, batch_tokens=100).make_batch([0, 2])
    assert batch.inputs.tolist() == [[1, 3, 4, 1, 1], [1, 3, 3, 6, 4]]
    assert batch.targets.tolist() == [[3, 4, 1, 1, 1], [3, 3, 6, 4, 1]] and batch.targets.dtype == torch.int64
