#!/usr/bin/env python3
"""Write lhotse manifests of LibriSpeech's parts, whole or not at all, sorted by id.

    ./local/prepare_manifests.py --corpus-dir download/LibriSpeech --parts "dev-clean" --manifest-dir data/manifests

As `lhotse prepare librispeech` does, with the same file names; sorted, because lhotse's own order is that of the file
system.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from lowbit_k2.data.manifests import write_manifests
from lowbit_k2.errors import UserError, run_main


def read_corpus(corpus_dir: Path, parts: list[str], num_jobs: int) -> dict[str, dict[str, Any]]:
    """Manifests by part and kind, from lhotse.

    Raises:
      UserError: lhotse cannot read the corpus, e.g. a damaged audio file.
    """
    from lhotse.recipes import prepare_librispeech

    try:
        return prepare_librispeech(corpus_dir, dataset_parts=parts, num_jobs=num_jobs)
    except Exception as error:  # lhotse and the audio libraries have no common class
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{corpus_dir} cannot be read ({type(error).__name__}: {reason}): unpack it again") from None


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus-dir", type=Path, required=True)
    parser.add_argument("--parts", default="", help="parts of LibriSpeech, separated by spaces")
    parser.add_argument("--manifest-dir", type=Path, required=True)
    parser.add_argument("--num-jobs", type=int, default=1)
    return parser


def main() -> None:
    args = get_parser().parse_args()
    if not args.corpus_dir.is_dir():
        raise UserError(f"no corpus at {args.corpus_dir}: download it with --stage 0, or give its folder")
    corpus_dir = args.corpus_dir.resolve()  # manifests name audio by full paths: usable from any folder
    manifests = read_corpus(corpus_dir, args.parts.split(), args.num_jobs)
    write_manifests("librispeech", manifests, args.manifest_dir)


if __name__ == "__main__":
    run_main(main)
