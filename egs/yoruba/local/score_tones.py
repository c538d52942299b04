#!/usr/bin/env python3
"""Word and character errors with tone marks and without, from what decode.py recognised.

    ./local/score_tones.py exp/float/ctc-greedy-search/recogs-test-*.txt

Tones are the grave and the acute accent and the macron; the dots below, which make other letters, stay.
"""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.errors import run_main
from lowbit_k2.scoring.recogs import read_recogs
from lowbit_k2.scoring.wer import Result, as_characters, score
from lowbit_k2.tables import text_table

TONES = {"\u0300", "\u0301", "\u0304"}  # combining grave, acute, macron


def without_tones(word: str) -> str:
    """The word with its letters alone."""
    apart = unicodedata.normalize("NFD", word)
    return unicodedata.normalize("NFC", "".join(mark for mark in apart if mark not in TONES))


def toneless(results: Iterable[Result]) -> list[Result]:
    """References and hypotheses without tone marks."""
    return [(name, [*map(without_tones, ref)], [*map(without_tones, hyp)]) for name, ref, hyp in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recogs", type=Path, nargs="+", help="recogs-*.txt of decode.py")
    args = parser.parse_args()
    rows = []
    for path in args.recogs:
        results = read_recogs(path)
        for name, these in (("as written", results), ("without tones", toneless(results))):
            rows.append([str(path), name, score(these).line("WER"), score(as_characters(these)).line("CER")])
    print(text_table(["file", "", "words", "characters"], rows, left=(0, 1)))


if __name__ == "__main__":
    run_main(main)
