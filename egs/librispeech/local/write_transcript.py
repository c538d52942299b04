#!/usr/bin/env python3
"""Write the transcripts of some parts as text, one utterance per line: for the BPE, the words and a 3-gram.

    ./local/write_transcript.py --manifest-dir data/manifests --parts "train-clean-100" --output data/transcript.txt

Each utterance counts once, speed perturbation or not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write


def read_texts(manifest: Path) -> Iterator[str]:
    """Texts of a supervision manifest in its order, white space normalised, empty ones left out.

    Raises:
      UserError: missing or unreadable manifest.
    """
    try:
        with gzip.open(manifest, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = " ".join((json.loads(line).get("text") or "").split())
                if text:
                    yield text
    except FileNotFoundError:
        raise UserError(f"{manifest} does not exist: run stage 1 (manifests) first") from None
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{manifest} cannot be read ({error}): remove it and run stage 1 again") from None


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest-dir", type=Path, required=True)
    parser.add_argument("--parts", required=True, help="parts, separated by spaces")
    parser.add_argument("--output", type=Path, required=True)
    return parser


def main() -> None:
    args = get_parser().parse_args()
    count = 0
    with atomic_write(args.output) as temporary, temporary.open("w", encoding="utf-8") as output:
        for part in args.parts.split():
            for text in read_texts(args.manifest_dir / f"librispeech_supervisions_{part}.jsonl.gz"):
                output.write(text + "\n")
                count += 1
    print(f"{args.output}: {count} utterances")


if __name__ == "__main__":
    run_main(main)
