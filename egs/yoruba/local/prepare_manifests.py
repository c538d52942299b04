#!/usr/bin/env python3
"""Write lhotse manifests of read Yoruba: train (the corpus's train and extra), dev (its val) and test.

    ./local/prepare_manifests.py --corpus-dir download/yoruba_speech_project/data/records --manifest-dir data/manifests

Each folder holds audio files and `text`, with `ID words` lines as Kaldi has them. Texts become small letters without
punctuation, in composed characters, tone marks kept. Besides the manifests, `transcript_train.txt` holds the training
texts, one utterance a line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from lowbit_k2.data.manifests import write_manifests
from lowbit_k2.data.sources import recording_of
from lowbit_k2.data.text import lower
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write
from lowbit_k2.textfile import numbered_lines

if TYPE_CHECKING:
    from lhotse import Recording, SupervisionSegment

FOLDERS = {"train": ("train", "extra"), "dev": ("val",), "test": ("test",)}
SUFFIXES = (".wav", ".flac", ".ogg")
REMEDY = "give --corpus-dir the folder that holds train, val, test and extra, each with a file text"
GREEK_IOTA = str.maketrans({"\u03af": "\u00ed"})  # typed once in the place of an i with an acute


def utterances(folder: Path) -> Iterator[tuple[Recording, SupervisionSegment]]:
    """lhotse's two records of each line of `text`.

    Raises:
      UserError: no such file, a line without words, or audio that is missing or cannot be read.
    """
    from lhotse import SupervisionSegment

    path = folder / "text"
    for number, line in numbered_lines(path, REMEDY):
        name, _, words = line.partition(" ")
        text = lower(words.translate(GREEK_IOTA))
        if not text:
            raise UserError(f"{path} line {number}: expected an id and words, found {line!r}")
        audio = next((file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()), None)
        if audio is None:
            raise UserError(f"{path} line {number}: {folder} has no audio of {name}: {REMEDY}")
        recording = recording_of(audio, name)
        yield (
            recording,
            SupervisionSegment(name, name, 0.0, recording.duration, text=text, speaker="yor", language="Yoruba"),
        )


def main() -> None:
    from lhotse import RecordingSet, SupervisionSet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus-dir", type=Path, required=True)
    parser.add_argument("--manifest-dir", type=Path, required=True)
    args = parser.parse_args()
    if not args.corpus_dir.is_dir():
        raise UserError(f"no corpus at {args.corpus_dir}: {REMEDY}")
    corpus_dir = args.corpus_dir.resolve()  # manifests name audio by full paths: usable from any folder
    manifests = {}
    for split, folders in FOLDERS.items():
        recordings, supervisions = zip(
            *(pair for name in folders for pair in utterances(corpus_dir / name)), strict=True
        )
        manifests[split] = {
            "recordings": RecordingSet.from_recordings(recordings),
            "supervisions": SupervisionSet.from_segments(supervisions),
        }
        print(f"{split}: {sum(recording.duration for recording in recordings) / 3600:.2f} hours")
    with atomic_write(args.manifest_dir / "transcript_train.txt") as temporary:
        temporary.write_text("".join(f"{s.text}\n" for s in manifests["train"]["supervisions"]), encoding="utf-8")
    write_manifests("yoruba", manifests, args.manifest_dir)


if __name__ == "__main__":
    run_main(main)
