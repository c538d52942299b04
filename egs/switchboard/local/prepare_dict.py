#!/usr/bin/env python3
"""Turn the ms98 dictionary into lexicon.txt (phones) and words.txt, for prepare_lang.

./local/prepare_dict.py --ms98-dir swb_ms98_transcriptions --transcript data/manifests/transcript_train.txt \
    --dict-dir data/dict

Words are those of the transcripts (see ms98.py): marks are taken away and variants such as them_1 become further
pronunciations. Acronyms give way to letters, words that were broken off are kept only if the training text has them,
mispronunciations only if a word has no other pronunciation. Words of the training text that the dictionary lacks are
listed in missing.txt: words.txt holds them, for models of word pieces; lexicon.txt does not. Such models cannot write
a letter that training has not, so words of the dictionary with one are not in words.txt.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]

from discs import DICTIONARY, Problems, check_folder, find_one
from ms98 import LETTERS, NOISES, Pronunciation, clean_token, find_acronyms, is_partial, read_dictionary

from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write
from lowbit_k2.graphs.lexicon import Entry, write_lexicon
from lowbit_k2.textfile import read_lines

NOISE_PHONES = dict(zip(NOISES, ("nsn", "lau", "spn"), strict=True))  # as Kaldi calls them
SILENCE = "sil"  # the blank of CTC takes its part


def spelled_words(known: Iterable[str], words: Iterable[str]) -> list[str]:
    """The training text's words and those of the dictionary that its letters can write, sorted."""
    letters = set("".join(words))
    return sorted({word for word in known if letters.issuperset(word)}.union(words))


def count_words(transcript: Path) -> Counter[str]:
    """The training text's words.

    Raises:
      UserError: missing or empty text.
    """
    words = Counter(word for line in read_lines(transcript) for word in line.split())
    if not words:
        raise UserError(f"{transcript} has no words: run the stage that makes it again")
    return words


def is_mispronounced(raw: str) -> bool:
    return "/" in raw


def plain_entries(
    raw_entries: Iterable[tuple[str, Pronunciation]], acronyms: Iterable[str]
) -> list[tuple[Entry, bool]]:
    """(word, phones) of the dictionary's words that are one word each, and whether it is a mispronunciation."""
    acronyms = set(acronyms)
    plain = []
    for raw, phones in raw_entries:
        word, phones = clean_token(raw), tuple(phone for phone in phones if phone != SILENCE)
        if word and phones and " " not in word and word not in NOISES and word not in acronyms:
            plain.append(((word, phones), is_mispronounced(raw)))
    return plain


def letter_entries(
    raw_entries: Iterable[tuple[str, Pronunciation]], acronyms: dict[str, tuple[str, ...]]
) -> list[Entry]:
    """All letters, and those with an ending, v's of tvs, as the acronyms pronounce them."""
    entries: list[Entry] = list(LETTERS.items())
    for raw, phones in raw_entries:
        letters = acronyms.get(clean_token(raw), ("",))
        if letters[-1].endswith("'s"):
            entries.append((letters[-1], phones[sum(len(LETTERS[letter]) for letter in letters[:-1]) :]))
    return entries


def make_lexicon(raw_entries: list[tuple[str, Pronunciation]], words: Counter[str], spell: bool) -> list[Entry]:
    """The entries, sorted, each once."""
    acronyms = find_acronyms(raw_entries) if spell else {}
    plain = plain_entries(raw_entries, acronyms)
    proper = {entry for entry, mispronounced in plain if not mispronounced}
    if spell:
        proper.update(letter_entries(raw_entries, acronyms))
    pronounced = {word for word, _ in proper}
    proper.update(entry for entry, mispronounced in plain if mispronounced and entry[0] not in pronounced)
    proper.update((noise, (phone,)) for noise, phone in NOISE_PHONES.items() if noise in words)
    return sorted((word, phones) for word, phones in proper if word in words or not is_partial(word))


def prepare(args: argparse.Namespace) -> None:
    """Read everything, then write.

    Raises:
      UserError: no dictionary, or none of the training words is in it.
    """
    problems = Problems()
    ms98_dir = check_folder(args.ms98_dir, "--ms98-dir", "the ms98 transcripts and dictionary")
    dictionary = args.dictionary or find_one([ms98_dir], DICTIONARY)
    if dictionary is None:
        raise UserError(f"{ms98_dir} holds no {DICTIONARY}: get the ms98 archive whole, or give --dictionary")
    words = count_words(args.transcript)
    entries = make_lexicon(read_dictionary(dictionary, problems), words, args.transcript_spells_acronyms)
    problems.report()
    known = {word for word, _ in entries}
    missing = {word: times for word, times in words.most_common() if word not in known}
    if len(missing) == len(words):
        raise UserError(f"{dictionary} has no word of {args.transcript}: give the dictionary that belongs to it")
    write_lexicon(args.dict_dir / "lexicon.txt", entries)
    for name, lines in (
        ("missing.txt", [f"{word} {times}" for word, times in missing.items()]),
        ("words.txt", spelled_words(known, words)),
    ):
        with atomic_write(args.dict_dir / name) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{args.dict_dir}: {len(known)} words, {len(entries)} pronunciations")
    if missing:
        tokens, first = sum(missing.values()), " ".join(list(missing)[:5])
        share = 100 * tokens / sum(words.values())
        print(
            f"note: the dictionary lacks {len(missing)} words of the training text ({tokens} times, {share:.2f}%), "
            f"most often {first}: see {args.dict_dir / 'missing.txt'}"
        )


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ms98-dir", type=Path, required=True, help="holds sw-ms98-dict.text")
    parser.add_argument("--dictionary", type=Path, help="this one instead")
    parser.add_argument("--transcript", type=Path, required=True, help="training text of prepare_manifests.py")
    parser.add_argument("--dict-dir", type=Path, required=True)
    parser.add_argument(
        "--whole-acronyms",
        dest="transcript_spells_acronyms",
        action="store_false",
        help="goes with prepare_manifests.py --spell-acronyms false",
    )
    return parser


if __name__ == "__main__":
    run_main(lambda: prepare(get_parser().parse_args()))
