#!/usr/bin/env python3
"""Write lhotse manifests of Switchboard-1's training and dev segments, and their texts.

./local/prepare_manifests.py --swbd-dir LDC97S62 --ms98-dir swb_ms98_transcriptions --manifest-dir data/manifests

Every segment of a transcript that has words becomes a supervision on the channel of its side, A on 0 and B on 1.
Dev is held out by a rule that looks at names only: callers whose hash falls into the first --dev-share of all hashes.
All their sides are dev; the other sides of their calls are left out, so that training holds neither a dev speaker nor
half of a dev conversation. Without a table of callers, whole conversations are drawn in the same way.

Segments that cannot be used are counted and named; more than --max-bad of them stop the script before it writes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]

from discs import (
    DICTIONARY,
    SIDES,
    Problems,
    check_folder,
    find_calls,
    find_one,
    find_transcripts,
    read_callers,
    read_lines,
)
from ms98 import Segment, TextOptions, find_acronyms, normalize, read_dictionary, read_transcript

from lowbit_k2.data.kaldi_dir import OVERHANG
from lowbit_k2.data.sources import is_sphere, recording_of
from lowbit_k2.data.sphere import ToolMissingError, is_cut, read_header
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.flags import str2bool

if TYPE_CHECKING:
    from lhotse import Recording, SupervisionSegment

OVERLAP = 0.05  # seconds by which neighbours may overlap: transcripts are rounded
Side = tuple[str, str]  # a conversation and A or B


@dataclass(frozen=True)
class Split:
    """Which sides go where."""

    train: frozenset[Side]
    dev: frozenset[Side]
    left_out: frozenset[Side]  # sides of other callers in dev conversations


def hash_share(name: str) -> float:
    """A number from 0 to 1 that depends on the name only, the same on every machine."""
    return int(hashlib.sha256(f"swbd dev {name}".encode()).hexdigest()[:8], 16) / 2**32


def split_sides(sides: Iterable[Side], callers: dict[Side, str], dev_share: float) -> Split:
    """Divide sides by caller, or by conversation where no caller is known at all.

    Raises:
      UserError: nothing is left for training.
    """
    groups: dict[str, set[Side]] = defaultdict(set)
    for side in sides:
        groups[callers.get(side, "-".join(side)) if callers else side[0]].add(side)
    chosen = {name for name in groups if hash_share(name) < dev_share} or {min(groups, key=hash_share)}
    dev = {side for name in chosen for side in groups[name]}
    conversations = {conversation for conversation, _ in dev}
    everything = {side for group in groups.values() for side in group}
    train = {side for side in everything if side[0] not in conversations}
    if not train:
        raise UserError("all conversations hold a dev speaker, nothing is left for training: lower --dev-share")
    return Split(frozenset(train), frozenset(dev), frozenset(everything - train - dev))


def open_recordings(calls: dict[str, Path], wav_dir: Path, problems: Problems) -> dict[str, Recording]:
    """lhotse's recordings of the calls that can be read and have two channels.

    Raises:
      ToolMissingError: compressed audio and no sph2pipe.
    """
    recordings = {}
    for name, path in progress_bar(sorted(calls.items()), "audio"):
        try:
            header = read_header(path) if is_sphere(path) else None
            recording = recording_of(path, name, wav_dir)
            if recording.num_channels != len(SIDES):
                problems.add("calls have not two channels and are left out", f"{path} ({recording.num_channels})")
                continue
            recordings[name] = recording
        except ToolMissingError:
            raise
        except UserError as error:
            problems.add("audio files are unreadable and left out", str(error))
            continue
        if header and is_cut(header, found := recordings[name].num_samples):
            problems.add("audio files are cut", f"{path} ({found} of {header.num_samples} samples)")
    return recordings


def usable_segments(
    segments: list[Segment], recording: Recording | None, options: TextOptions, problems: Problems
) -> tuple[list[tuple[Segment, str]], int]:
    """The segments of one side that have words and lie in the audio, with their texts, and how many are spoilt."""
    usable: list[tuple[Segment, str]] = []
    spoilt, end = 0, 0.0
    for segment in sorted(segments, key=lambda s: (s.start, s.end)):
        where = f"{segment.name} from {segment.start} to {segment.end} s"
        if recording is None:
            problems.add("segments have no audio", where)
        elif segment.start >= recording.duration or segment.end > recording.duration + OVERHANG:
            problems.add("segments lie outside of their audio", f"{where}, which has {recording.duration} s")
        elif segment.start < end - OVERLAP:
            problems.add("segments overlap the one before", f"{where}, the one before ends at {end} s")
        else:
            end = segment.end
            if text := normalize(segment.text, options):
                usable.append((segment, text))
            continue
        spoilt += 1
    return usable, spoilt


def describe(segment: Segment, text: str, recording: Recording, speaker: str) -> SupervisionSegment:
    """lhotse's record of a segment, named as Kaldi does: sw02001-A_000098-001156, times in hundredths of a second."""
    from lhotse import SupervisionSegment

    start, end = (int(100 * seconds + 0.5) for seconds in (segment.start, segment.end))
    return SupervisionSegment(
        id=f"{segment.conversation}-{segment.side}_{start:06d}-{end:06d}",
        recording_id=recording.id,
        start=segment.start,
        duration=round(min(segment.end, recording.duration) - segment.start, 8),
        channel=SIDES.index(segment.side),
        text=text,
        speaker=speaker,
        language="English",
    )


def read_sides(
    transcripts: dict[Side, Path],
    recordings: dict[str, Recording],
    callers: dict[Side, str],
    args: argparse.Namespace,
    problems: Problems,
) -> dict[Side, list[SupervisionSegment]]:
    """The supervisions of all sides that have any.

    Raises:
      UserError: too many segments are spoilt, or there are none.
    """
    options, sides, total, spoilt = text_options(args, problems), {}, 0, 0
    for (call, side), path in progress_bar(sorted(transcripts.items()), "transcripts"):
        segments, recording = read_transcript(path, call, side, problems), recordings.get(call)
        lines = sum(1 for _ in read_lines(path))
        usable, bad = usable_segments(segments, recording, options, problems)
        total, spoilt = total + lines, spoilt + bad + lines - len(segments)
        if lines == 0:
            problems.add("transcripts are empty", str(path))
        if usable:
            speaker = f"caller{callers[call, side]}" if (call, side) in callers else f"{call}-{side}"
            sides[call, side] = [describe(segment, text, recording, speaker) for segment, text in usable]
    for call, side in sorted((call, side) for call in recordings for side in SIDES):
        if (call, side) not in transcripts:
            problems.add("sides have audio and no transcript", f"{call} side {side}")
    problems.report()
    if spoilt > args.max_bad * total:
        raise UserError(
            f"{spoilt} of {total} segments cannot be used, for the reasons above: check the discs, "
            f"or accept them with --max-bad {math.ceil(100 * spoilt / total) / 100:.2f}"
        )
    if not sides:
        raise UserError(f"no transcript of {args.ms98_dir} has words: check --ms98-dir")
    print(f"{total} segments in {len(transcripts)} transcripts, {spoilt} of them spoilt")
    return sides


def text_options(args: argparse.Namespace, problems: Problems) -> TextOptions:
    """What becomes of noises, partial words and acronyms."""
    acronyms: dict[str, tuple[str, ...]] = {}
    if args.spell_acronyms:
        dictionary = args.dictionary or find_one([args.ms98_dir, args.swbd_dir], DICTIONARY)
        if dictionary is None:
            print(f"note: no {DICTIONARY} below {args.ms98_dir}: acronyms are not spelled", file=sys.stderr)
        else:
            acronyms = find_acronyms(read_dictionary(dictionary, problems))
    return TextOptions(args.noises, args.partial_words, acronyms)


def write_split(
    name: str, supervisions: list[SupervisionSegment], recordings: dict[str, Recording], manifest_dir: Path
) -> None:
    """Write the manifests and the texts of one split, sorted by id."""
    from lhotse import RecordingSet, SupervisionSet

    supervisions = sorted(supervisions, key=lambda supervision: supervision.id)
    used = sorted({supervision.recording_id for supervision in supervisions})
    with atomic_write(manifest_dir / f"swbd_supervisions_{name}.jsonl.gz") as temporary:
        SupervisionSet.from_segments(supervisions).to_file(temporary)
    with atomic_write(manifest_dir / f"transcript_{name}.txt") as temporary:
        temporary.write_text("".join(f"{supervision.text}\n" for supervision in supervisions), encoding="utf-8")
    with atomic_write(manifest_dir / f"swbd_recordings_{name}.jsonl.gz") as temporary:
        RecordingSet.from_recordings(recordings[recording] for recording in used).to_file(temporary)
    speakers = len({supervision.speaker for supervision in supervisions})
    hours = sum(supervision.duration for supervision in supervisions) / 3600
    print(f"{name}: {len(supervisions)} segments of {speakers} speakers in {len(used)} calls, {hours:.2f} hours")


def prepare(args: argparse.Namespace) -> None:
    """Read everything, then write."""
    problems = Problems()
    args.swbd_dir = check_folder(args.swbd_dir, "--swbd-dir", "LDC97S62")
    args.ms98_dir = check_folder(args.ms98_dir, "--ms98-dir", "the ms98 transcripts")
    calls, transcripts = find_calls(args.swbd_dir, problems), find_transcripts(args.ms98_dir, problems)
    if not calls or not transcripts:
        empty, what = (args.ms98_dir, "transcripts") if calls else (args.swbd_dir, "audio")
        raise UserError(f"{empty} holds no {what}: stage 0 (check_discs.py) says what is expected")
    recordings = open_recordings(calls, args.wav_dir or args.manifest_dir.parent / "wav", problems)
    callers, table = read_callers([args.swbd_dir, args.ms98_dir], problems)
    sides = read_sides(transcripts, recordings, callers, args, problems)
    split = split_sides(sides, callers, args.dev_share)
    for name, chosen in (("train", split.train), ("dev", split.dev)):
        write_split(name, [s for side in sorted(chosen) for s in sides[side]], recordings, args.manifest_dir)
    if callers:
        print(f"callers by {table}; {len(split.left_out)} sides of dev calls are another caller's and left out")
        unknown = len(set(sides) - set(callers))
        if unknown:
            print(f"note: {unknown} of {len(sides)} sides are not in it: each counts as a speaker of its own")
    else:
        print("note: no table of callers: dev is held out by conversation, its speakers may be in training")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swbd-dir", type=Path, required=True, help="LDC97S62, laid out in any way")
    parser.add_argument("--ms98-dir", type=Path, required=True, help="transcripts and dictionary")
    parser.add_argument("--manifest-dir", type=Path, required=True)
    parser.add_argument("--dictionary", type=Path, help="spells acronyms; by default sw-ms98-dict.text of --ms98-dir")
    parser.add_argument(
        "--wav-dir", type=Path, help="for audio that sph2pipe converts; by default wav beside manifests"
    )
    parser.add_argument("--dev-share", type=share, default=0.01, help="of the callers; about as much of the speech")
    parser.add_argument("--max-bad", type=float, default=0.05, help="share of spoilt segments that is put up with")
    parser.add_argument("--noises", type=str2bool, default=False, help="keep [noise] [laughter] [vocalized-noise]")
    parser.add_argument("--partial-words", type=str2bool, default=True, help="keep th- for th[at]-")
    parser.add_argument("--spell-acronyms", type=str2bool, default=True, help="i b m for ibm, as the references do")
    return parser


def share(text: str) -> float:
    """A number between 0 and 0.5, for argparse."""
    value = float(text)
    if not 0 < value < 0.5:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    run_main(lambda: prepare(get_parser().parse_args()))
