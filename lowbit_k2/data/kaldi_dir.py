"""Read a Kaldi data directory (wav.scp, text, and if present segments, utt2spk) as lhotse cuts.

Only plain audio files are taken. A line of wav.scp that ends in `|` is a shell command; it is refused, never run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2.errors import UserError
from lowbit_k2.textfile import numbered_lines

if TYPE_CHECKING:
    from lhotse import CutSet, Recording, SupervisionSegment

MISSING = "a Kaldi data directory holds wav.scp and text"
# A segment may end this much behind its recording: Kaldi rounds times to 0.01 s, and tools cut generously.
END_TOLERANCE = 0.1  # seconds


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


def read_recordings(path: Path, wanted: Iterable[str]) -> dict[str, Recording]:
    """The wanted recordings of wav.scp. Relative paths are taken from the current folder, as Kaldi does.

    Raises:
      UserError: a command instead of a file, a missing or unreadable file, or no line for a wanted recording.
    """
    from lhotse import Recording

    table = read_table(path, 1)
    for name, (location,) in table.items():
        if location.endswith("|"):
            raise UserError(f"{path}: {name} is a shell command, which is not run: write its output to a WAV file")
    recordings = {}
    for name in wanted:
        if name not in table:
            raise UserError(f"{path} has no line for recording {name}")
        audio = Path(table[name][0])
        if not audio.is_file():
            raise UserError(f"{path}: {audio} (recording {name}) does not exist; archives (x.ark:1) are not taken")
        try:
            recordings[name] = Recording.from_file(audio.resolve(), recording_id=name)
        except Exception as error:  # the audio libraries have no common class
            raise UserError(f"{audio} cannot be read as audio ({type(error).__name__}): convert it to WAV") from None
    return recordings


def read_segments(data_dir: Path, utterances: Iterable[str]) -> dict[str, tuple[str, float, float]]:
    """Recording, start and end in seconds of each utterance; an end of -1 is that of the recording.

    Raises:
      UserError: an utterance without a segment, or times that are none.
    """
    path = data_dir / "segments"
    if not path.is_file():
        return {name: (name, 0.0, -1.0) for name in utterances}
    table, segments = read_table(path, 3), {}
    for name in utterances:
        if name not in table:
            raise UserError(f"{path} has no line for utterance {name}, which {data_dir / 'text'} transcribes")
        recording, start, end = table[name]
        try:
            segments[name] = (recording, float(start), float(end))
        except ValueError:
            raise UserError(f"{path}: {name} has times '{start}' and '{end}', expected seconds") from None
    return segments


def read_kaldi_dir(data_dir: str | Path) -> CutSet:
    """One cut per line of `text`, sorted by utterance id; the first channel of files with several.

    Raises:
      UserError: files that are missing, damaged or do not fit each other; the line says which.
    """
    from lhotse import CutSet

    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise UserError(f"{data_dir} is no folder: give a Kaldi data directory with wav.scp and text")
    texts = read_texts(data_dir / "text")
    segments = read_segments(data_dir, sorted(texts))
    names = sorted({recording for recording, _, _ in segments.values()})
    recordings = read_recordings(data_dir / "wav.scp", names)
    speakers = read_table(data_dir / "utt2spk", 1) if (data_dir / "utt2spk").is_file() else {}
    cuts = []
    for name, (recording, start, end) in segments.items():
        speaker = speakers.get(name, [None])[0]
        cuts.append(
            make_cut(make_supervision(name, recordings[recording], start, end, texts[name], speaker), recordings)
        )
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
    name: str, recording: Recording, start: float, end: float, text: str, speaker: str | None
) -> SupervisionSegment:
    """The transcript of a stretch of a recording.

    Raises:
      UserError: a stretch that is empty or lies outside of the recording.
    """
    from lhotse import SupervisionSegment

    stop = recording.duration if end == -1.0 else min(end, recording.duration)
    if not 0.0 <= start < stop or end > recording.duration + END_TOLERANCE:
        raise UserError(
            f"utterance {name} covers {start} to {end} s, but its recording {recording.id} has {recording.duration} s"
        )
    return SupervisionSegment(
        id=name,
        recording_id=recording.id,
        start=start,
        duration=round(stop - start, 8),
        channel=recording.channel_ids[0],
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
