"""Mississippi State's transcripts and dictionary of Switchboard-1 (ms98), and the text that models learn.

A transcript has one segment a line, `sw2001A-ms98-a-0002 0.977625 11.561375 hi um yeah`, in small letters. What is
not a plain word is marked, and becomes:

    th[at]-  -[wh]at        th-  -at         part of a word, the rest in brackets (or dropped, see TextOptions)
    [laughter-yeah]         yeah             said laughing
    [it'n/isn't]            isn't            mispronounced: what was meant, unless only part of it was said
    {yuppiedom}             yuppiedom        coined by the speaker
    them_1  a_1's           them  a's        a pronunciation of its own in the dictionary
    ibm  t._v.'s  a_b_c     i b m  t v's     acronyms that the dictionary spells; NIST's references have letters, too
    at&t  a&amp;e           a t and t  a and e
    [noise] [laughter] [vocalized-noise]     dropped, or kept as words, see TextOptions
    [silence] <b_aside> <e_aside>            dropped
    uh-huh  mother-in-law                    as they are

Source of the marks: the rules of Kaldi's Switchboard recipe (s5c), which was written for these files.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from string import ascii_lowercase

from discs import Problems, read_lines

from lowbit_k2.data.text import APOSTROPHES

NOISES = ("[noise]", "[laughter]", "[vocalized-noise]")
SILENCE = "[silence]"
ASIDE = re.compile(r"<[be]_aside>")  # with or without a blank before the next word
LAUGHING = re.compile(r"(-?)\[laughter-(.+)\](-?)")
SAID_AND_MEANT = re.compile(r"\[?([^/]+)/([^/]+)\](-?)")  # the first bracket is missing here and there
COINED = re.compile(r"(-?)\{(.+)\}(-?)")
BEGINNING_UNSAID = re.compile(r"-?\[[^][]+\]([^][].*)")
END_UNSAID = re.compile(r"(.*[^][])\[[^][]+\]-?")
MIDDLE_UNSAID = re.compile(r"(?<=[a-z0-9'])\[[^][]+\](?=[a-z0-9'])")
VARIANT = re.compile(r"(?<=[]a-z0-9'.-])_\d+")
DOTTED = re.compile(r"[a-z]\.(?:_[a-z]\.)*(?:'?s)?")  # i._b._m.'s
UNDERSCORED = re.compile(r"[a-z](?:_[a-z])+(?:'?s)?")  # i_b_m's
JOINED = re.compile(r"[a-z]+(?:&[a-z]+)+(?:'s)?")  # at&t's
ODD_CHARACTERS = re.compile(r"[^a-z0-9'-]")
SEGMENT_NAME = re.compile(r"sw(\d{4})([ab])-ms98-a-\d+", re.IGNORECASE)

Pronunciation = tuple[str, ...]
# The names of the letters a to z in the dictionary's phones.
LETTER_NAMES = (
    "ey,b iy,s iy,d iy,iy,eh f,jh iy,ey ch,ay,jh ey,k ey,eh l,eh m,eh n,ow,p iy,k y uw,aa r,eh s,t iy,y uw,v iy,"
    "d ah b ax l y uw,eh k s,w ay,z iy"
)
LETTERS: dict[str, Pronunciation] = {
    letter: tuple(name.split()) for letter, name in zip(ascii_lowercase, LETTER_NAMES.split(","), strict=True)
}


@dataclass(frozen=True)
class Segment:
    """One line of a transcript: seconds of one side of a conversation, e.g. of sw02001, A; `text` with all marks."""

    conversation: str
    side: str
    start: float
    end: float
    text: str
    name: str


@dataclass(frozen=True)
class TextOptions:
    """What becomes of sounds that are no words.

    Attributes:
      noises: keep NOISES as words of their own.
      partial_words: keep what was said of words that were broken off, with the hyphen.
      acronyms: word -> its letters; see `find_acronyms`.
    """

    noises: bool = False
    partial_words: bool = True
    acronyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def is_partial(word: str) -> bool:
    """Broken off, or begun in the middle: `th-`, `-at`."""
    return word.startswith("-") or word.endswith("-")


@lru_cache(maxsize=2**17)  # Fisher has 22 million words, few of them different
def clean_token(token: str) -> str:
    """One token of a transcript or of the dictionary as it is learned: a word, a noise, several words, or nothing.

    Unknown marks in brackets count as [noise].
    """
    token = ASIDE.sub("", token.lower()).replace("&amp;", "&")  # some & of the dictionary are written as in HTML
    if token == SILENCE or token in NOISES:
        return "" if token == SILENCE else token
    token = VARIANT.sub("", unwrap(token))
    token = BEGINNING_UNSAID.sub(r"-\1", token) if BEGINNING_UNSAID.fullmatch(token) else token
    token = END_UNSAID.sub(r"\1-", token) if END_UNSAID.fullmatch(token) else token
    token = MIDDLE_UNSAID.sub("-", token)
    if token.startswith("[") and token.endswith("]") and len(token) > 3:  # [a] is a letter
        return NOISES[0]
    if DOTTED.fullmatch(token) or UNDERSCORED.fullmatch(token):
        return re.sub(r"(?<=[a-z])s$", "'s", token.replace("._", " ").replace(".", "")).replace("_", " ")
    if JOINED.fullmatch(token):
        return spell_joined(token)
    words = re.sub(r"-+", "-", ODD_CHARACTERS.sub(" ", token)).split()
    return " ".join(word for word in words if re.search(r"[a-z0-9]", word))


def spell_joined(token: str) -> str:
    """at&t's -> a t and t's; parts of more than two letters are words."""
    stem = token.removesuffix("'s")
    parts = [" ".join(part) if len(part) < 3 else part for part in stem.split("&")]
    return " and ".join(parts) + token[len(stem) :]


def to_ascii(text: str) -> str:
    """Letters without accents, straight apostrophes, dashes as gaps; ms98 is ASCII, corpora like it may not be."""
    text = unicodedata.normalize("NFKD", re.sub(r"[\u2012-\u2015]", " ", text).translate(APOSTROPHES))
    return "".join(c for c in text if not unicodedata.combining(c))


def unwrap(token: str) -> str:
    """Take away what surrounds a word: laughter, braces, and the second of its two spellings."""
    while True:
        if found := LAUGHING.fullmatch(token) or COINED.fullmatch(token):
            token = "".join(found.groups())
        elif found := SAID_AND_MEANT.fullmatch(token):
            said, meant, cut = found.groups()
            said += cut
            token = said if is_partial(clean_token(said)) else meant
        else:
            return token


def normalize(text: str, options: TextOptions) -> str:
    """The words of a segment, separated by single spaces; perhaps none."""
    words: list[str] = []
    for token in to_ascii(text).split():
        for word in clean_token(token).split():
            if word in NOISES:
                words += [word] if options.noises else []
            elif is_partial(word):
                words += [word] if options.partial_words else []
            else:
                words += options.acronyms.get(word, (word,))
    return " ".join(words)


# --- transcripts ------------------------------------------------------------------------------------------------


def read_transcript(path: Path, conversation: str, side: str, problems: Problems) -> list[Segment]:
    """The segments of one side; lines that are none, or another side's, go to `problems`."""
    segments = []
    for number, line in read_lines(path):
        fields = line.split(maxsplit=3)
        segment = parse_segment(fields)
        if segment is None:
            problems.add("lines of transcripts are no segments", f"{path} line {number}: {line[:60]!r}")
        elif (segment.conversation, segment.side) != (conversation, side):
            problems.add("lines belong to another side than their file", f"{path} line {number}: {segment.name}")
        else:
            segments.append(segment)
    return segments


def parse_segment(fields: list[str]) -> Segment | None:
    """A segment of name, start, end and words; None if they make no sense."""
    name = SEGMENT_NAME.fullmatch(fields[0])
    try:
        start, end = (float(field) for field in fields[1:3])
    except ValueError:
        return None
    if name is None or not 0 <= start < end < float("inf"):
        return None
    text = fields[3] if len(fields) > 3 else ""
    return Segment(f"sw0{name[1]}", name[2].upper(), start, end, text, fields[0])


# --- dictionary -------------------------------------------------------------------------------------------------


def read_dictionary(path: Path, problems: Problems) -> list[tuple[str, Pronunciation]]:
    """Lines `word phone phone ...`, words with all marks, in small letters; comments begin with #."""
    entries = []
    for number, line in read_lines(path):
        word, *phones = line.lower().split()
        if word.startswith("#"):
            continue
        if phones:
            entries.append((word, tuple(phones)))
        else:
            problems.add("words of the dictionary have no phones", f"{path} line {number}: {line[:60]!r}")
    return entries


def find_acronyms(entries: Iterable[tuple[str, Pronunciation]]) -> dict[str, tuple[str, ...]]:
    """Words of two and more letters that are pronounced as their letters only: tv -> t v, tvs and tv's -> t v's.

    `ibm` is one because its phones are those of i, b and m; `us` has another pronunciation besides and is none.
    """
    pronunciations: dict[str, set[Pronunciation]] = defaultdict(set)
    for raw, phones in entries:
        pronunciations[clean_token(raw)].add(phones)
    acronyms = {}
    for word, variants in pronunciations.items():
        letters = word.removesuffix("'s") if word.endswith("'s") else word
        for stem, ending in ((letters, word[len(letters) :]), (word.removesuffix("s"), "'s")):
            if len(stem) > 1 and stem.isalpha() and all(is_spelled(stem, v, ending) for v in variants):
                acronyms[word] = (*stem[:-1], stem[-1] + ending)
                break
    return acronyms


def is_spelled(stem: str, phones: Pronunciation, ending: str) -> bool:
    """Whether `phones` are the names of the letters of `stem`, and those of the ending 's if there is one."""
    spelled = tuple(phone for letter in stem for phone in LETTERS.get(letter, ("",)))
    rest = phones[len(spelled) :]
    return phones[: len(spelled)] == spelled and (
        bool(rest) and rest[-1] in "sz" and len(rest) < 3 if ending else not rest
    )
