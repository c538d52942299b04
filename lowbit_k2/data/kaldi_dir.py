"""Read a Kaldi data directory (wav.scp, text, and if present segments, utt2spk) as lhotse cuts.

Only plain audio files are taken, SPHERE among them. A line of wav.scp that ends in `|` is a shell command; it is
refused, or becomes a recording of type `command` where commands are allowed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2.data.sources import recording_of, recording_of_command
from lowbit_k2.errors import UserError
from lowbit_k2.textfile import numbered_lines

if TYPE_CHECKING:
    from lhotse import CutSet, Recording, SupervisionSegment

KALDI_FILES = ("wav.scp", "text", "segments", "utt2spk")
MISSING = "a Kaldi data directory holds wav.scp and text"
# A segment may begin or end so much outside of its recording: Kaldi rounds times to 0.01 s, and tools cut generously.
OVERHANG = 0.1  # seconds
MAX_LEFT_OUT = 0.05  # share of utterances that may lie outside of their recordings
SIDES = {"A": 0, "B": 1}


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording in seconds; an end of -1 or none is that of the recording, no channel its first."""

    recording: str
    start: float = 0.0
    end: float = -1.0
    channel: int | None = None


def read_table(path: Path, num_fields: int) -> dict[str, list[str]]:
    """Read `key field field ...` lines; the last of `num_fields` fields takes the rest of the line.

    Raises:
      UserError: missing file, not UTF-8, a key given twice, or too few fields.
    """
    table: dict[str, list[str]] = {}
    for number, line in numbered_lines(path, MISSING):
        key, *fields = line.split(maxsplit=num_fields)
        if len(fields) < num_fields:
            raise UserError(f"{path} line {number}: expected {num_fields} fields behind {key}, found {len(fields)}")
        if key in table:
            raise UserError(f"{path} line {number}: {key} occurs twice")
        table[key] = fields
    if not table:
        raise UserError(f"{path} is empty")
    return table


def read_recordings(path: Path, wanted: Iterable[str], allow_commands: bool = False) -> dict[str, Recording]:
    """The wanted recordings of wav.scp. Relative paths are taken from the current folder, as Kaldi does.

    Raises:
      UserError: a command instead of a file, a missing or unreadable file, or no line for a wanted recording.
    """
    table = read_table(path, 1)
    for name, (location,) in table.items():
        if location.endswith("|") and not allow_commands:
            raise UserError(
                f"{path}: {name} is a shell command, which is not run: write its output to a WAV file, or give "
                "allow_commands for files that you trust"
            )
    recordings = {}
    for name in wanted:
        if name not in table:
            raise UserError(f"{path} has no line for recording {name}")
        location = table[name][0]
        if location.endswith("|"):
            recordings[name] = recording_of_command(location[:-1].strip(), name)
            continue
        audio = Path(location)
        if not audio.is_file():
            raise UserError(f"{path}: {audio} (recording {name}) does not exist; archives (x.ark:1) are not taken")
        recordings[name] = recording_of(audio, name)
    return recordings


def read_segments(data_dir: Path, utterances: Iterable[str]) -> dict[str, Segment]:
    """The stretch of each utterance: of `segments`, or else the recording of its name.

    Raises:
      UserError: an utterance without a segment, or fields that are no times or channel.
    """
    path = data_dir / "segments"
    if not path.is_file():
        return {name: Segment(name) for name in utterances}
    table, segments = read_table(path, 3), {}
    for name in utterances:
        if name not in table:
            raise UserError(f"{path} has no line for utterance {name}, which {data_dir / 'text'} transcribes")
        recording, start, rest = table[name]
        end, *channel = rest.split()
        try:
            segments[name] = Segment(recording, float(start), float(end), *map(_channel, channel))
        except (ValueError, TypeError):
            raise UserError(
                f"{path}: {name} has times '{start}' and '{rest}', expected seconds, and perhaps a channel"
            ) from None
    return segments


def _channel(text: str) -> int:
    return SIDES[text] if text in SIDES else int(text)


def read_kaldi_dir(data_dir: str | Path, allow_commands: bool = False) -> CutSet:
    """One cut per line of `text`, sorted by utterance id; of files with several channels the first, unless `segments`
    says otherwise. Utterances that lie outside of their recordings are left out with a warning.

    Raises:
      UserError: files that are missing, damaged or do not fit each other, the line says which; or more than
        `MAX_LEFT_OUT` of the utterances are outside of their recordings.
    """
    from lhotse import CutSet

    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise UserError(f"{data_dir} is no folder: give a Kaldi data directory with wav.scp and text")
    texts = read_texts(data_dir / "text")
    segments = read_segments(data_dir, sorted(texts))
    names = sorted({segment.recording for segment in segments.values()})
    recordings = read_recordings(data_dir / "wav.scp", names, allow_commands)
    speakers = read_table(data_dir / "utt2spk", 1) if (data_dir / "utt2spk").is_file() else {}
    cuts, outside = [], []
    for name, segment in segments.items():
        try:
            supervision = make_supervision(
                name, recordings[segment.recording], segment, texts[name], speakers.get(name, [None])[0]
            )
        except UserError as error:
            outside.append(str(error))
            continue
        cuts.append(make_cut(supervision, recordings))
    if len(outside) > MAX_LEFT_OUT * len(segments):
        raise UserError(f"{data_dir / 'segments'}: {len(outside)} of {len(segments)} do not fit, first {outside[0]}")
    if outside:
        logging.warning("%s: %d of %d utterances left out, first %s", data_dir, len(outside), len(segments), outside[0])
    return CutSet.from_cuts(cuts)


def read_texts(path: Path) -> dict[str, str]:
    """The file `text`; an utterance may have no words."""
    texts: dict[str, str] = {}
    for number, line in numbered_lines(path, MISSING):
        name, *words = line.split()
        if name in texts:
            raise UserError(f"{path} line {number}: {name} occurs twice")
        texts[name] = " ".join(words)
    if not texts:
        raise UserError(f"{path} is empty")
    return texts


def make_supervision(
    name: str, recording: Recording, segment: Segment, text: str, speaker: str | None
) -> SupervisionSegment:
    """The transcript of a stretch of a recording.

    Raises:
      UserError: a stretch that is empty or lies outside of the recording, or a channel that it does not have.
    """
    from lhotse import SupervisionSegment

    seconds, channels = recording.duration, recording.channel_ids
    start, end = segment.start, seconds if segment.end == -1.0 else segment.end
    if len(channels) > 1 and segment.channel not in (None, *channels):
        raise UserError(f"utterance {name} is on channel {segment.channel}, {recording.id} has {channels}")
    first, stop = max(start, 0.0), min(end, seconds)
    if not (start >= -OVERHANG and first < stop and end <= seconds + OVERHANG):
        raise UserError(f"utterance {name} covers {start} to {end} s, but its recording {recording.id} has {seconds} s")
    return SupervisionSegment(
        id=name,
        recording_id=recording.id,
        start=first,
        duration=round(stop - first, 8),
        channel=segment.channel if segment.channel in channels else channels[0],
        text=text,
        speaker=speaker,
    )


def make_cut(supervision: SupervisionSegment, recordings: dict[str, Recording]):
    """A cut that holds one supervision and bears its id."""
    from lhotse import MonoCut

    return MonoCut(
        id=supervision.id,
        start=supervision.start,
        duration=supervision.duration,
        channel=supervision.channel,
        recording=recordings[supervision.recording_id],
        supervisions=[supervision.with_offset(-supervision.start)],
    )
