"""The embedded corpus's pronouncing dictionary, in the form of ISIP's sw-ms98-dict.text and with its phones."""

from __future__ import annotations

from collections.abc import Iterable

from mini_dialogue import said

from lowbit_k2.synthesis.espeak import Espeak

VOICE = "en-us"
HEADER = """\
# File: sw-ms98-dict.text
# Pronunciations of the embedded corpus, by espeak-ng's rules for American English
#
"""
# espeak-ng's mnemonics of its American English -> phones; what is missing here has the same name there.
PHONES = {
    "a": "ae", "aa": "ae", "a#": "ax", "A:": "aa", "A@": "aa r", "0": "aa", "0#": "ax", "O:": "ao", "O2": "ao",
    "O": "ao", "O@": "ao r", "o@": "ao r", "V": "ah", "E": "eh", "E#": "ih", "e": "eh", "e@": "eh r", "3:": "er",
    "3": "er", "@": "ax", "@2": "ax", "@5": "ax", "@L": "el", "I": "ih", "I2": "ih", "I#": "ih", "i": "iy",
    "i:": "iy", "i@": "iy ax", "i@3": "iy r", "U": "uh", "u": "uw", "u:": "uw", "U@": "uh r", "aI": "ay",
    "aI@": "ay ax", "aI3": "ay er", "aU": "aw", "aU@": "aw er", "eI": "ey", "oU": "ow", "OI": "oy", "n-": "en",
    "t#": "t", "t2": "t", "?": "t", "tS": "ch", "dZ": "jh", "D": "dh", "T": "th", "S": "sh", "Z": "zh", "N": "ng",
    "j": "y", "h": "hh",
}  # fmt: skip
CONSONANTS = set("bdfgklmnprstvwz")


def pronounce(word: str, espeak: Espeak) -> list[str]:
    """The phones of a written word.

    Raises:
      KeyError: espeak-ng uses a sound that is not in PHONES.
    """
    phones = []
    for mnemonic in espeak.phonemes(said(word), VOICE):
        phones.extend([mnemonic] if mnemonic in CONSONANTS else PHONES[mnemonic].split())
    return phones


def dictionary_text(words: Iterable[str]) -> str:
    """The whole file. Starts espeak-ng: call it in a process of its own."""
    espeak = Espeak()
    lines = [f"{word} {' '.join(pronounce(word, espeak))}\n" for word in sorted(words)]
    return "".join([HEADER, "[silence] sil\n", *lines])
