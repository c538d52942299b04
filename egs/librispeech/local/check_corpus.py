#!/usr/bin/env python3
"""Look at a LibriSpeech folder before the stages rely on it, and print the parts of it that can be used.

    ./local/check_corpus.py --corpus-dir download/LibriSpeech --parts "train-clean-100 dev-clean test-clean"

Wanted parts that are absent are named on stderr and left out; a training and a dev part must be there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from lowbit_k2.errors import UserError, run_main
from lowbit_k2.textfile import numbered_lines

REMEDY = "give --librispeech-dir the folder that holds train-clean-100 etc., or download it with --stage 0"


def usable_parts(corpus_dir: Path, wanted: list[str]) -> tuple[list[str], list[str]]:
    """Split `wanted` into parts that are there and parts that are absent; checks the first kind.

    Raises:
      UserError: no such folder, no training or dev part, no transcripts, or utterances without audio.
    """
    if not corpus_dir.is_dir():
        raise UserError(f"no LibriSpeech at {corpus_dir}: {REMEDY}")
    present = [part for part in wanted if (corpus_dir / part).is_dir()]
    for kind in ("train", "dev"):
        if not any(part.startswith(kind) for part in present):
            raise UserError(f"{corpus_dir} holds no {kind} part of {' '.join(wanted)}: {REMEDY}")
    for part in present:
        check_part(corpus_dir / part)
    return present, [part for part in wanted if part not in present]


def read_part(part_dir: Path) -> Iterator[tuple[Path, str]]:
    """Audio file and `id WORDS` of each transcribed utterance of a part; files that a Mac leaves (`._*`) are none.

    Raises:
      UserError: no transcripts, or a line without words.
    """
    transcripts = [path for path in sorted(part_dir.glob("*/*/*.trans.txt")) if not path.name.startswith("._")]
    if not transcripts:
        raise UserError(f"{part_dir} holds no speaker/chapter/*.trans.txt: it is no part of LibriSpeech, or not whole")
    for path in transcripts:
        for number, line in numbered_lines(path):
            name, *words = line.split()
            if not words:
                raise UserError(f"{path} line {number}: expected an utterance id and its words, found {line!r}")
            yield path.parent / f"{name}.flac", line


def check_part(part_dir: Path) -> None:
    """Every transcribed utterance of a part has a FLAC file that is not empty."""
    for audio, _ in read_part(part_dir):
        if not audio.is_file() or audio.stat().st_size == 0:
            raise UserError(f"{audio} is missing or empty, but is transcribed: unpack the part again")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus-dir", type=Path, required=True)
    parser.add_argument("--parts", required=True, help="wanted parts, separated by spaces")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    present, absent = usable_parts(args.corpus_dir, args.parts.split())
    if absent:
        print(f"{args.corpus_dir} does not hold {' '.join(absent)}: left out", file=sys.stderr)
    print(" ".join(present))


if __name__ == "__main__":
    run_main(main)
