#!/usr/bin/env python3
"""Take Fisher's transcripts as text for language models, one sentence a line, written as Switchboard's are.

./local/fisher_text.py --fisher-text LDC2004T19,LDC2005T19 --output data/lm/fisher.txt \
    --ms98-dir swb_ms98_transcriptions

A line of a transcript is `7.38 8.78 A: an- so the topic is`. Lines with (( )), which the transcribers were not sure
of, are left out, as Kaldi does.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]

from discs import DICTIONARY, Problems, check_folder, find_files, find_one, read_lines
from ms98 import TextOptions, find_acronyms, normalize, read_dictionary

from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.flags import str2bool

LINE = re.compile(r"[0-9.]+\s+[0-9.]+\s+[AB]\s*:\s*(.*)")
LAUGHTER = re.compile(r"\[laugh\]", re.IGNORECASE)
UNSURE = "(("


def read_sentences(path: Path, options: TextOptions, problems: Problems) -> list[str]:
    """The sentences of a transcript that have words."""
    sentences = []
    for number, line in read_lines(path):
        if line.startswith("#"):
            continue
        found = LINE.fullmatch(line)
        if found is None:
            problems.add("lines of Fisher's transcripts are not understood", f"{path} line {number}: {line[:60]!r}")
        elif UNSURE not in found[1]:
            sentences.append(normalize(LAUGHTER.sub("[laughter]", found[1]), options))
    return [sentence for sentence in sentences if sentence]


def prepare(args: argparse.Namespace) -> None:
    """Read all transcripts, then write.

    Raises:
      UserError: there are none, or they have no words.
    """
    problems = Problems()
    folders = [check_folder(Path(f), "--fisher-text", "LDC2004T19 or LDC2005T19") for f in args.fisher_text.split(",")]
    paths = [p for folder in folders for p in find_files(folder, ".txt") if p.name.lower().startswith("fe_03_")]
    if not paths:
        raise UserError(f"no fe_03_*.txt below {args.fisher_text}: give --fisher-text LDC2004T19 and LDC2005T19")
    dictionary = find_one([args.ms98_dir], DICTIONARY) if args.ms98_dir else None
    acronyms = find_acronyms(read_dictionary(dictionary, problems)) if dictionary else {}
    options = TextOptions(args.noises, args.partial_words, acronyms)
    sentences = [s for path in progress_bar(paths, "Fisher") for s in read_sentences(path, options, problems)]
    problems.report()
    if not sentences:
        raise UserError(f"the transcripts below {args.fisher_text} have no words: are they Fisher's?")
    with atomic_write(args.output) as temporary:
        temporary.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
    print(f"{args.output}: {len(sentences)} sentences of {len(paths)} transcripts")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fisher-text", required=True, help="folders, separated by commas")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--ms98-dir", type=Path, help="its dictionary spells acronyms, as in the training text")
    parser.add_argument("--noises", type=str2bool, default=False, help="keep [noise] [laughter] [vocalized-noise]")
    parser.add_argument("--partial-words", type=str2bool, default=True, help="keep th-")
    return parser


if __name__ == "__main__":
    run_main(lambda: prepare(get_parser().parse_args()))
