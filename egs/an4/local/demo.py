#!/usr/bin/env python3
"""Transcribe the recordings of pretrained/ with the packed runtime, and count errors. No torch.

make transcribe-demo                        # in an environment with the runtime's packages alone
python egs/an4/local/demo.py --golden       # write down what the model says now, for the test
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
sys.path.insert(0, str(PRETRAINED.parents[2]))

from lowbit_k2.core.text import printable
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import sha256, write_json
from lowbit_k2.runtime import Recogniser, isa_in_use
from lowbit_k2.runtime.matrix import DEFAULT_MODE
from lowbit_k2.runtime.native import MODES
from lowbit_k2.scoring.wer import score
from lowbit_k2.textfile import numbered_lines

MODEL, GOLDEN = PRETRAINED / "an4-1bit.safetensors", PRETRAINED / "golden.json"


def references() -> dict[str, list[str]]:
    """Words of each recording, by its name."""
    return {name: words for _, line in numbered_lines(PRETRAINED / "text") for name, *words in [line.split()]}


def transcribe_all(recogniser: Recogniser) -> dict[str, tuple[str, float, float]]:
    """Words, seconds of audio and seconds of work of each recording."""
    found = {}
    for name in references():
        start = time.perf_counter()
        heard = recogniser.transcribe(PRETRAINED / f"{name}.flac")
        found[name] = heard.text, heard.seconds, time.perf_counter() - start
    return found


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--packed", type=Path, default=MODEL, help="another packed file")
    parser.add_argument("--mode", choices=MODES, default=DEFAULT_MODE)
    parser.add_argument("--golden", action="store_true", help=f"write {GOLDEN.name}")
    args = parser.parse_args()
    if not args.packed.is_file():
        raise UserError(f"{args.packed} does not exist: train egs/an4, export at 1 bit, and name the file by --packed")
    recogniser = Recogniser.load(args.packed, args.mode)
    found = transcribe_all(recogniser)
    if args.golden:
        words = {name: text for name, (text, _, _) in found.items()}
        write_json(GOLDEN, {"sha256": sha256(args.packed), "words": words})
        print(f"wrote {GOLDEN}")
        return
    for name, (text, _, _) in found.items():
        print(f"{name}  heard  {printable(text)}\n{' ' * len(name)}  said   {' '.join(references()[name])}")
    print(score((name, words, found[name][0].split()) for name, words in references().items()))
    audio, work = (sum(times) for times in list(zip(*found.values(), strict=True))[1:])
    size = args.packed.stat().st_size
    print(f"{audio:.1f} s of audio in {work:.2f} s, RTF {work / audio:.4f}, {isa_in_use()}, model of {size:,} bytes")


if __name__ == "__main__":
    run_main(main)
