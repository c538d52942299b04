"""Transcripts as the models spell them: one case, single spaces, no punctuation, no marks.

A mark is what transcribers write beside the words: anything within `[]`, `<>` or `{}`, and a single word within `()`:
`[noise]`, `<unk>`, `{BREATH}`, `(laughter)`, `[door slam]`. `upper` and `lower` leave marks out, `none` keeps them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from lowbit_k2.errors import UserError
from lowbit_k2.textfile import clean

MARK = re.compile(r"\[[^\[\]]*\]|<[^<>]*>|\{[^{}]*\}|\([^()\s]*\)")

APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "`": "'"})


def squeeze(text: str) -> str:
    """Words separated by single spaces, nothing at the ends."""
    return " ".join(clean(text).split())


def marks(text: str) -> list[str]:
    """The marks of a text, spaces in them squeezed."""
    return [squeeze(mark) for mark in MARK.findall(text)]


def strip_punctuation(text: str) -> str:
    """Letters, digits, combining marks and apostrophes inside of words are kept; the rest separates words.

    `Don't -- 24-hour "rock 'n' roll" [noise]` gives `Don't 24 hour rock n roll`.
    """
    while MARK.search(text):  # of `[a [b] c]` the inner one goes first
        text = MARK.sub(" ", text)
    text = unicodedata.normalize("NFKC", text).translate(APOSTROPHES)
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return squeeze(" ".join(word.strip("'") for word in kept.split()))


def upper(text: str) -> str:
    """As LibriSpeech and AN4 write it: capitals without punctuation."""
    return strip_punctuation(text).upper()


def lower(text: str) -> str:
    """Small letters without punctuation."""
    return strip_punctuation(text).lower()


NORMALIZERS: dict[str, Callable[[str], str]] = {"none": squeeze, "upper": upper, "lower": lower}


def normalizer(name: str) -> Callable[[str], str]:
    """Look a normaliser up by name.

    Raises:
      UserError: there is none of that name.
    """
    if name not in NORMALIZERS:
        raise UserError(f"unknown text normaliser {name!r}: choose one of {', '.join(NORMALIZERS)}")
    return NORMALIZERS[name]
