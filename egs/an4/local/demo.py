#!/usr/bin/env python3
"""Transcribe three utterances of AN4's test set with the model of pretrained/ on the packed runtime, and count errors.

make transcribe-demo                        # downloads the corpus; in an environment with the runtime's packages alone
python egs/an4/local/demo.py --corpus-dir an4            # a corpus that you have; no torch
python egs/an4/local/demo.py --golden       # write down what the model says now, for the test

The utterances are those that golden.json names.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPE.parents[1]), str(RECIPE / "local")]

from prepare_manifests import Utterance, read_part

from lowbit_k2.core.text import printable
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import read_json, sha256, write_json
from lowbit_k2.runtime import Recogniser, isa_in_use
from lowbit_k2.runtime.matrix import DEFAULT_MODE
from lowbit_k2.runtime.native import MODES
from lowbit_k2.scoring.wer import score

MODEL, GOLDEN = RECIPE / "pretrained/an4-1bit.safetensors", RECIPE / "pretrained/golden.json"
CORPUS = RECIPE / "download/an4"


def read_utterances(corpus_dir: Path) -> list[Utterance]:
    """Those of golden.json, from a folder with etc/ and wav/.

    Raises:
      UserError: there is no such folder, or it lacks some of them.
    """
    if not (corpus_dir / "etc").is_dir():
        get = f"{RECIPE / 'prepare.sh'} --stage 0 --stop-stage 0"
        raise UserError(f"no AN4 at {corpus_dir}: download it ({get}), or give its folder with --corpus-dir")
    names = read_json(GOLDEN)["words"]
    found = [utterance for utterance in read_part(corpus_dir, "test") if utterance.id in names]
    if len(found) < len(names):
        raise UserError(f"{corpus_dir} lacks some of {', '.join(names)}: give --corpus-dir AN4 as it is distributed")
    return sorted(found, key=lambda utterance: utterance.id)


def transcribe_all(recogniser: Recogniser, utterances: Iterable[Utterance]) -> dict[str, tuple[str, float, float]]:
    """Words, seconds of audio and seconds of work, by utterance."""
    found = {}
    for utterance in utterances:
        start = time.perf_counter()
        heard = recogniser.transcribe(utterance.audio)
        found[utterance.id] = heard.text, heard.seconds, time.perf_counter() - start
    return found


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--corpus-dir", type=Path, default=CORPUS, help="AN4: the folder with etc/ and wav/")
    parser.add_argument("--packed", type=Path, default=MODEL, help="another packed file")
    parser.add_argument("--mode", choices=MODES, default=DEFAULT_MODE)
    parser.add_argument("--golden", action="store_true", help=f"write {GOLDEN.name}")
    args = parser.parse_args()
    if not args.packed.is_file():
        raise UserError(f"{args.packed} does not exist: train egs/an4, export at 1 bit, and name the file by --packed")
    utterances = read_utterances(args.corpus_dir)
    found = transcribe_all(Recogniser.load(args.packed, args.mode), utterances)
    if args.golden:
        words = {name: text for name, (text, _, _) in found.items()}
        write_json(GOLDEN, {"sha256": sha256(args.packed), "words": words})
        print(f"wrote {GOLDEN}")
        return
    for utterance in utterances:
        heard = printable(found[utterance.id][0])
        print(f"{utterance.id}  heard  {heard}\n{' ' * len(utterance.id)}  said   {utterance.text}")
    print(score((u.id, u.text.split(), found[u.id][0].split()) for u in utterances))
    audio, work = (sum(times) for times in list(zip(*found.values(), strict=True))[1:])
    size = args.packed.stat().st_size
    print(f"{audio:.1f} s of audio in {work:.2f} s, RTF {work / audio:.4f}, {isa_in_use()}, model of {size:,} bytes")


if __name__ == "__main__":
    run_main(main)
