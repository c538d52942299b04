#!/usr/bin/env python3
"""Write lhotse manifests of LibriSpeech's parts, whole or not at all, sorted by id.

    ./local/prepare_manifests.py --corpus-dir download/LibriSpeech --parts "dev-clean" --manifest-dir data/manifests

Each utterance is read by lhotse's own recipe, and the files bear its names; sorted, because the order of a file system
is anyone's.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from check_corpus import read_part

from lowbit_k2.data.manifests import write_manifests
from lowbit_k2.errors import UserError, run_main


def read_manifests(part_dir: Path, num_jobs: int) -> dict[str, Any]:
    """Recordings and supervisions of a part, each utterance read by lhotse.

    Raises:
      UserError: lhotse cannot read an utterance, e.g. a damaged audio file.
    """
    from lhotse import RecordingSet, SupervisionSet, fix_manifests
    from lhotse.recipes.librispeech import parse_utterance

    def parse(utterance: tuple[Path, str]) -> tuple:
        audio, line = utterance
        try:
            if (found := parse_utterance(part_dir, line, {})) is not None:
                return found
        except Exception as error:  # lhotse and the audio libraries have no common class
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{audio} cannot be read ({type(error).__name__}: {reason}): unpack it again") from None
        raise UserError(f"{audio} does not exist, but is transcribed: unpack the part again")

    with ThreadPoolExecutor(num_jobs) as threads:
        pairs = list(threads.map(parse, read_part(part_dir)))
    recordings = RecordingSet.from_recordings(recording for recording, _ in pairs)
    supervisions = SupervisionSet.from_segments(segment for _, segment in pairs)
    return dict(zip(("recordings", "supervisions"), fix_manifests(recordings, supervisions), strict=True))


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
    manifests = {part: read_manifests(corpus_dir / part, args.num_jobs) for part in args.parts.split()}
    write_manifests("librispeech", manifests, args.manifest_dir)


if __name__ == "__main__":
    run_main(main)
