#!/usr/bin/env python3
"""Take AN4's dictionary: lexicon.txt (phones, several pronunciations a word) and words.txt (one word a line).

    ./local/prepare_dict.py --corpus-dir download/an4 --transcript data/manifests/transcript_train.txt \
        --dict-dir data/dict

The corpus marks further pronunciations by a number, A(2); here they are further lines of the same word.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write
from lowbit_k2.graphs.lexicon import read_lexicon, write_lexicon
from lowbit_k2.textfile import read_lines


def check_coverage(words: set[str], transcript: Path, dictionary: Path) -> None:
    """Every training word has a pronunciation.

    Raises:
      UserError: words without one; the first ones are named.
    """
    missing = sorted({word for line in read_lines(transcript) for word in line.split()} - words)
    if missing:
        raise UserError(
            f"{dictionary} has no pronunciation of {len(missing)} words ({' '.join(missing[:5])}): add them"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus-dir", type=Path, required=True)
    parser.add_argument(
        "--transcript", type=Path, required=True, help="training texts, all of whose words must be in it"
    )
    parser.add_argument("--dict-dir", type=Path, required=True)
    args = parser.parse_args()
    dictionary = args.corpus_dir / "etc" / "an4.dic"
    if not dictionary.is_file():
        raise UserError(f"{dictionary} does not exist: give --an4-dir the folder that holds etc/ and wav/")
    entries = sorted(read_lexicon(dictionary), key=lambda entry: entry[0])
    words = {word for word, _ in entries}
    check_coverage(words, args.transcript, dictionary)
    write_lexicon(args.dict_dir / "lexicon.txt", entries)
    with atomic_write(args.dict_dir / "words.txt") as temporary:
        temporary.write_text("".join(f"{word}\n" for word in sorted(words)), encoding="utf-8")
    print(f"{args.dict_dir}: {len(words)} words, {len(entries)} pronunciations")


if __name__ == "__main__":
    run_main(main)
