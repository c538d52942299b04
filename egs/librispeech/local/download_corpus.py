#!/usr/bin/env python3
"""Download LibriSpeech's parts (OpenSLR 12, or 31 for Mini LibriSpeech) or MUSAN (OpenSLR 17) through lhotse.

    ./local/download_corpus.py --download-dir download --parts "train-clean-100 dev-clean"
    ./local/download_corpus.py --download-dir download --musan

Interrupted downloads go on where they stopped; what has been unpacked whole is not fetched again.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from lowbit_k2.errors import UserError, run_main


def fetch(what: str, page: str, download: Callable[[], object]) -> None:
    """Run a download of lhotse's.

    Raises:
      UserError: the network or the archive failed.
    """
    try:
        download()
    except (OSError, tarfile.TarError, EOFError) as error:  # URLError and HTTPError are OSErrors
        raise UserError(
            f"{what} could not be downloaded ({error}): run the stage again to go on, or fetch it by hand from {page}"
        ) from None


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--download-dir", type=Path, required=True, help="LibriSpeech/ and musan/ appear in it")
    parser.add_argument("--parts", default="", help="parts of LibriSpeech, separated by spaces")
    parser.add_argument("--musan", action="store_true")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH, download_librispeech
    from lhotse.recipes.musan import download_musan

    parts = args.parts.split()
    unknown = [part for part in parts if part not in (*LIBRISPEECH, *MINI_LIBRISPEECH)]
    if unknown:
        raise UserError(f"LibriSpeech has no part {unknown[0]}: choose from {' '.join(LIBRISPEECH + MINI_LIBRISPEECH)}")
    if parts:
        page = "https://www.openslr.org/31" if set(parts) <= set(MINI_LIBRISPEECH) else "https://www.openslr.org/12"
        fetch("LibriSpeech", page, lambda: download_librispeech(args.download_dir, dataset_parts=parts))
    if args.musan:
        fetch("MUSAN", "https://www.openslr.org/17", lambda: download_musan(args.download_dir))


if __name__ == "__main__":
    run_main(main)
