"""Text to token ids and back: sentencepiece pieces (BPE or characters), phones through a lexicon, or whole words.

Token 0 is always the CTC blank `<blk>`. A tokenizer can be written to bytes, which a packed model carries along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece

from lowbit_k2.core.text import is_special
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.lexicon import BLANK, Entry, read_lexicon, read_symbols

BPE_MODEL = "bpe.model"
UNKNOWN, BOUNDARY = "<unk>", "<sos/eos>"  # a word that is none of the units; the begin and end of a sentence
WORD_START = "▁"  # sentencepiece's mark of a word's first piece


class Tokenizer(Protocol):
    """What training, decoding and packing need of a tokenizer."""

    kind: str  # "sentencepiece" | "lexicon" | "words", "": names the reader of `to_bytes`
    spells_words: bool  # False where `decode` gives phones, so that words need a lexicon graph

    @property
    def vocab_size(self) -> int:
        """Number of classes of the network, blank included."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a transcript, never the blank."""

    def unknown(self, text: str) -> str:
        """Characters of a transcript that no unit spells, each once."""

    def pronunciations(self, word: str) -> list[list[int]]:
        """All token sequences of a word, the preferred one first."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; blank and special tokens are left out."""

    def pieces(self) -> list[str]:
        """The symbol of every id, in order."""

    def to_bytes(self) -> bytes:
        """The tokenizer as bytes, read back by `tokenizer_from_bytes`."""


class SentencePieceTokenizer:
    """A sentencepiece model whose piece 0 is `<blk>`, as icefall trains them.

    Args:
      model: bytes of a sentencepiece model (bpe.model).

    Raises:
      UserError: not a sentencepiece model, or piece 0 is not the blank.
    """

    kind = "sentencepiece"
    spells_words = True

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            pieces = self.pieces()
        except (RuntimeError, ValueError):  # pieces that are no UTF-8
            raise UserError("the bytes are no sentencepiece model: make bpe.model again with train_bpe") from None
        if not pieces or pieces[0] != BLANK:
            raise UserError(f"piece 0 of the sentencepiece model is not {BLANK}: make it with train_bpe")
        odd = next((piece for piece in pieces if not piece.isprintable()), None)
        if odd is not None:
            raise UserError(f"piece {odd!r} of the sentencepiece model is not printable: make it with train_bpe")
        self._unknown = self._processor.unk_id()
        self._special = {i for i, piece in enumerate(pieces) if is_special(piece)}

    @property
    def vocab_size(self) -> int:
        return self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        return self._processor.EncodeAsIds(text)

    def unknown(self, text: str) -> str:
        if self._unknown not in self.encode(text):
            return ""
        known = {character for i, piece in enumerate(self.pieces()) if i not in self._special for character in piece}
        return "".join(dict.fromkeys(c for c in "".join(text.split()) if c not in known)) or text[:1]

    def pronunciations(self, word: str) -> list[list[int]]:
        return [self.encode(word)]

    def encode_words(self, words: Sequence[str]) -> list[list[str]]:
        """Pieces of each word spelled alone, for a lexicon."""
        return [self._processor.EncodeAsPieces(word) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.DecodeIds([int(i) for i in ids if int(i) not in self._special])

    def pieces(self) -> list[str]:
        return [self._processor.IdToPiece(i) for i in range(self.vocab_size)]

    def to_bytes(self) -> bytes:
        return self._model


class LexiconTokenizer:
    """Phones: each word is spelled by its first pronunciation.

    `decode` gives phones separated by spaces, because phones do not spell words: words come from an HLG graph.

    Args:
      tokens: phone to id, `<blk>` being 0; disambiguation symbols are ignored.
      entries: pronunciations, the preferred one of a word first.
    """

    kind = "lexicon"
    spells_words = False

    def __init__(self, tokens: Mapping[str, int], entries: Sequence[Entry]):
        self._tokens = {t: i for t, i in tokens.items() if not t.startswith("#")}
        if sorted(self._tokens.values()) != list(range(len(self._tokens))) or self._tokens.get(BLANK) != 0:
            raise UserError(f"tokens.txt must number its symbols 0, 1, ... with {BLANK} as 0: run prepare_lang")
        self._symbols = [token for token, _ in sorted(self._tokens.items(), key=lambda item: item[1])]
        self._entries = list(entries)
        self._ids: dict[str, list[list[int]]] = {}
        for word, pronunciation in self._entries:
            missing = [phone for phone in pronunciation if phone not in self._tokens]
            if missing:
                raise UserError(f"phone {missing[0]} of word {word} is not in tokens.txt: run prepare_lang")
            self._ids.setdefault(word, []).append([self._tokens[phone] for phone in pronunciation])

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in text.split():
            ids.extend(self.pronunciations(word)[0])
        return ids

    def pronunciations(self, word: str) -> list[list[int]]:
        if word not in self._ids:
            raise UserError(f"word {word} is not in the lexicon: add its pronunciation to lexicon.txt")
        return self._ids[word]

    def unknown(self, text: str) -> str:
        return ""  # words without a pronunciation are refused by `encode`

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._symbols[int(i)] for i in ids if int(i) != 0)

    def pieces(self) -> list[str]:
        return list(self._symbols)

    def to_bytes(self) -> bytes:
        value = {"tokens": self._symbols, "lexicon": [[word, *pron] for word, pron in self._entries]}
        return json.dumps(value, ensure_ascii=False).encode("utf-8")


class WordTokenizer:
    """Words of a list, for language models; all others are `<unk>`.

    Args:
      words: each once, without spaces in them.

    Raises:
      UserError: none, one twice, or one that could be taken for another unit.
    """

    kind = "words"
    spells_words = True
    _specials = (BLANK, BOUNDARY, UNKNOWN)

    def __init__(self, words: Sequence[str]):
        self._pieces = [*self._specials, *words]
        self._ids = {word: i for i, word in enumerate(self._pieces)}
        if not words or len(self._ids) != len(self._pieces) or any(word.split() != [word] for word in words):
            raise UserError("a list of words holds each of them once, and no special symbol: make the model again")
        self._unknown = self._ids[UNKNOWN]

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, self._unknown) for word in text.split()]

    def unknown(self, text: str) -> str:
        return ""  # `<unk>` stands for every word

    def pronunciations(self, word: str) -> list[list[int]]:
        return [self.encode(word)]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._pieces[int(i)] for i in ids if int(i) >= len(self._specials))

    def pieces(self) -> list[str]:
        return list(self._pieces)

    def to_bytes(self) -> bytes:
        return "\n".join(self._pieces[len(self._specials) :]).encode("utf-8")

    @classmethod
    def from_bytes(cls, data: bytes) -> WordTokenizer:
        """Inverse of `to_bytes`; raises UserError where that cannot be."""
        try:
            return cls(data.decode("utf-8").split("\n"))
        except UnicodeDecodeError:
            raise UserError("the list of words is damaged: make the model again") from None

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], min_count: int = 1, most: int = 0) -> WordTokenizer:
        """The words of a text that occur `min_count` times or more, of these the `most` frequent ones (0: all).

        Raises:
          UserError: there are none.
        """
        specials = cls._specials
        kept = [word for word, count in counts.items() if count >= min_count and word not in specials]
        kept.sort(key=lambda word: (-counts[word], word))
        if not kept:
            raise UserError(f"no word occurs {min_count} times: lower the cut-off, or give more text")
        return cls(kept[: most or None])


class NoUnits:
    """In the place of a tokenizer, of a model that puts out no units, such as hidden states alone."""

    kind = ""  # as packed files of models without units have it
    spells_words = False
    vocab_size = 0

    def pieces(self) -> list[str]:
        return []

    def to_bytes(self) -> bytes:
        return b""


def tokenizer_from_bytes(kind: str, data: bytes) -> Tokenizer:
    """Rebuild a tokenizer from `Tokenizer.kind` and `Tokenizer.to_bytes()`.

    Raises:
      UserError: unknown kind or damaged bytes.
    """
    if kind == "sentencepiece":
        return SentencePieceTokenizer(data)
    if kind == WordTokenizer.kind:
        return WordTokenizer.from_bytes(data)
    if kind == NoUnits.kind:
        return NoUnits()
    if kind != "lexicon":
        raise UserError(f"unknown kind of tokenizer {kind!r}: expected sentencepiece, lexicon or words")
    try:
        value = json.loads(data.decode("utf-8"))
        tokens = {token: i for i, token in enumerate(value["tokens"])}
        entries = [(row[0], tuple(row[1:])) for row in value["lexicon"]]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise UserError("the bytes are no lexicon tokenizer: export the model again") from None
    return LexiconTokenizer(tokens, entries)


def load_tokenizer(lang_dir: str | Path) -> Tokenizer:
    """Read the tokenizer of a lang directory: bpe.model if there is one, otherwise tokens.txt and lexicon.txt.

    A path to a `.model` file is taken, too.

    Raises:
      UserError: neither is there, or the files are damaged.
    """
    path = Path(lang_dir)
    model = path if path.is_file() else path / BPE_MODEL
    if model.is_file():
        return SentencePieceTokenizer(model.read_bytes())
    if not (path / "lexicon.txt").is_file():
        raise UserError(f"{path} holds neither {BPE_MODEL} nor lexicon.txt: run train_bpe or prepare_lang first")
    return LexiconTokenizer(read_symbols(path / "tokens.txt"), read_lexicon(path / "lexicon.txt"))
