#!/usr/bin/env python3
"""Write lhotse manifests of CMU AN4: train (64 speakers), dev (10 of the training speakers) and test (10 others).

    ./local/prepare_manifests.py --corpus-dir download/an4 --manifest-dir data/manifests
    ./local/prepare_manifests.py --corpus-dir download/an4 --manifest-dir data/fold-2/manifests --fold 2

The dev speakers are number 7, 14, 21, ... 70 of the 74 training speakers in alphabetical order. For cross-validation,
fold K of five tests on speakers K, K + 5, K + 10, ... of all 84 in alphabetical order; every seventh of the others is a
dev speaker. Besides the manifests, `transcript_<split>.txt` holds the texts, one utterance a line.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from lowbit_k2.data.sources import recording_of
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write
from lowbit_k2.textfile import numbered_lines

if TYPE_CHECKING:
    from lhotse import Recording, SupervisionSegment

DEV_EVERY, NUM_FOLDS = 7, 5
REMEDY = "give --an4-dir the folder that holds etc/ and wav/, or download it with --stage 0"
LINE = re.compile(r"^(?:<s>)?(?P<text>[^()<>]*)(?:</s>)?\s*\((?P<id>[^()\s]+)\)$")


@dataclass(frozen=True)
class Utterance:
    """One line of the corpus's lists."""

    id: str  # an251-fash-b
    speaker: str  # fash
    audio: Path
    text: str


def read_corpus_lines(path: Path) -> list[str]:
    return [line for _, line in numbered_lines(path, REMEDY)]


def read_part(corpus_dir: Path, part: str) -> Iterator[Utterance]:
    """Utterances of `train` or `test`, from etc/an4_<part>.{fileids,transcription}.

    Raises:
      UserError: missing lists, lists that do not fit each other, or missing audio.
    """
    list_path = corpus_dir / "etc" / f"an4_{part}.transcription"
    texts = {}
    for number, line in enumerate(read_corpus_lines(list_path), start=1):
        found = LINE.match(line)
        if found is None:
            raise UserError(f"{list_path} line {number}: expected words and an id in parentheses, found {line!r}")
        texts[found["id"]] = " ".join(found["text"].split())
    for fileid in read_corpus_lines(corpus_dir / "etc" / f"an4_{part}.fileids"):
        name, audio = fileid.split("/")[-1], corpus_dir / "wav" / f"{fileid}.wav"
        if not audio.is_file() and audio.with_suffix(".sph").is_file():
            audio = audio.with_suffix(".sph")  # as CMU distributes it, an4_sphere.tar.gz
        if name not in texts:
            raise UserError(f"{list_path} has no line for {name}: {REMEDY}")
        if not audio.is_file():
            raise UserError(f"{audio} does not exist: {REMEDY}")
        yield Utterance(name, fileid.split("/")[-2], audio, texts[name])


def split_speakers(utterances: list[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
    """Training and dev utterances, by speaker."""
    speakers = sorted({utterance.speaker for utterance in utterances})
    dev = set(speakers[DEV_EVERY - 1 :: DEV_EVERY])
    return [u for u in utterances if u.speaker not in dev], [u for u in utterances if u.speaker in dev]


def make_fold(utterances: list[Utterance], fold: int) -> dict[str, list[Utterance]]:
    """train, dev and test of one fold, 1 to `NUM_FOLDS`, by speaker."""
    speakers = sorted({utterance.speaker for utterance in utterances})
    tested = set(speakers[fold - 1 :: NUM_FOLDS])
    train, dev = split_speakers([u for u in utterances if u.speaker not in tested])
    return {"train": train, "dev": dev, "test": [u for u in utterances if u.speaker in tested]}


def describe(utterance: Utterance) -> tuple[Recording, SupervisionSegment]:
    """lhotse's two records of an utterance.

    Raises:
      UserError: the audio cannot be read.
    """
    from lhotse import SupervisionSegment

    recording = recording_of(utterance.audio, utterance.id)
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=recording.duration,
        text=utterance.text,
        speaker=utterance.speaker,
        language="English",
    )
    return recording, supervision


def write_split(split: str, utterances: list[Utterance], manifest_dir: Path) -> None:
    """Write the manifests and the transcript of one split, sorted by id."""
    from lhotse import RecordingSet, SupervisionSet

    records = [describe(utterance) for utterance in sorted(utterances, key=lambda u: u.id)]
    supervisions = SupervisionSet.from_segments(supervision for _, supervision in records)
    with atomic_write(manifest_dir / f"an4_supervisions_{split}.jsonl.gz") as temporary:
        supervisions.to_file(temporary)
    with atomic_write(manifest_dir / f"transcript_{split}.txt") as temporary:
        temporary.write_text("".join(f"{s.text}\n" for s in supervisions), encoding="utf-8")
    with atomic_write(manifest_dir / f"an4_recordings_{split}.jsonl.gz") as temporary:
        RecordingSet.from_recordings(recording for recording, _ in records).to_file(temporary)
    speakers, hours = len({u.speaker for u in utterances}), sum(recording.duration for recording, _ in records) / 3600
    print(f"{split}: {len(records)} utterances of {speakers} speakers, {hours:.2f} hours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus-dir", type=Path, required=True)
    parser.add_argument("--manifest-dir", type=Path, required=True)
    parser.add_argument(
        "--fold", type=int, default=0, choices=range(NUM_FOLDS + 1), help="0: the corpus's own test set"
    )
    args = parser.parse_args()
    if not args.corpus_dir.is_dir():
        raise UserError(f"no corpus at {args.corpus_dir}: {REMEDY}")
    corpus_dir = args.corpus_dir.resolve()  # manifests name audio by full paths: usable from any folder
    train, test = (list(read_part(corpus_dir, part)) for part in ("train", "test"))
    if args.fold:
        splits = make_fold(train + test, args.fold)
    else:
        splits = dict(zip(("train", "dev"), split_speakers(train), strict=True)) | {"test": test}
    for split, utterances in splits.items():
        write_split(split, utterances, args.manifest_dir)


if __name__ == "__main__":
    run_main(main)
