"""Tokens of a packed file and the words that they spell, as data/tokenizer.py has them, without sentencepiece.

Of a sentencepiece model only the pieces are read: the protocol buffer `ModelProto` of sentencepiece_model.proto, where
field 1, repeated, is a piece with its text in field 1 and its type in field 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lowbit_k2.core.text import is_special
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.lexicon import BLANK

WORD_START = "▁"  # sentencepiece's mark of a word's first piece
MAX_BYTES = 1 << 23  # of a tokenizer, which take seconds to read; one of 256,000 pieces has half of it
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Units:
    """What a recogniser needs of its tokens.

    pieces: the symbol of every id; of sentencepiece's the mark of a word's start is a part.
    between: what stands between two symbols where they are spelled; "" joins them to words at the marks.
    silent: ids that spell nothing.
    """

    pieces: tuple[str, ...]
    between: str
    silent: frozenset[int]

    def words(self, ids: Sequence[int]) -> list[str]:
        """What token ids spell: words, or phones where the model has those."""
        return [word for word, _, _ in self.spans(ids)]

    def spans(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """The same with the places in `ids` of the first and the last token that spell a letter of each word."""
        text, places = "", []
        for place, i in enumerate(ids):
            if i not in self.silent:
                piece = self.between + self.pieces[i].replace(WORD_START, " ")
                text += piece
                places += [place] * len(piece)
        found = re.finditer(r"\S+", text)
        return [(word[0], places[word.start()], places[word.end() - 1]) for word in found]


def read_units(kind: str, data: bytes) -> Units:
    """The tokens of a packed file.

    Raises:
      UserError: unknown kind, damaged bytes, more than MAX_BYTES, or no blank in front.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"a tokenizer of {len(data)} bytes, at most {MAX_BYTES} are read: export the model again")
    if kind == "sentencepiece":
        pieces = tuple(_pieces(data))
        silent = (i for i, piece in enumerate(pieces) if is_special(piece))
        units = Units(pieces, "", frozenset(silent))
    elif kind == "lexicon":
        units = Units(_symbols(data), " ", frozenset([0]))
    else:
        raise UserError(f"unknown kind of tokenizer {kind!r}: expected sentencepiece or lexicon")
    if not units.pieces or units.pieces[0] != BLANK:
        raise UserError(f"the first token is not {BLANK}: export the model again")
    return units


def _symbols(data: bytes) -> tuple[str, ...]:
    try:
        symbols = json.loads(data.decode("utf-8"))["tokens"]
        if isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols):
            return tuple(symbols)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError("the bytes are no lexicon tokenizer: export the model again")


def _pieces(data: bytes) -> Iterator[str]:
    try:
        for field, value in _fields(data):
            if field == 1:
                yield dict(_fields(value))[1].decode("utf-8")
    except (IndexError, KeyError, AttributeError, TypeError, ValueError):
        raise UserError("the bytes are no sentencepiece model: make bpe.model again with train_bpe") from None


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of every field of a message; floats as their bytes.

    Raises:
      ValueError, IndexError: the bytes are no message.
    """
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        if key & 7 == VARINT:
            value, place = _varint(data, place)
        else:
            size = {FIXED64: 8, FIXED32: 4}.get(key & 7)
            if key & 7 == BYTES:
                size, place = _varint(data, place)
            if size is None or place + size > len(data):
                raise ValueError("a field of no known type, or beyond the end")
            value, place = data[place : place + size], place + size
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of more than ten bytes")
