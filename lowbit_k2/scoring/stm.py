"""NIST's STM format: the reference of a scored test set, one timed stretch of one speaker a line.

    ;; LABEL "O" "Overall" "Overall"
    en_4156 A en_4156_A 301.85 302.48 <O,en,F,en-F> oh yeah

Fields: recording, channel, speaker, start and end in seconds, categories in angle brackets (may be absent), and the
words, in which scoring later reads alternatives `{ a / b }`, optional words `(uh)` and the mark of what is not scored.
Lines that begin with `;;` are comments; those before the first segment name the categories, and sclite reads them.
Source: SCTK's documentation of its input formats (`infmts`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.textfile import numbered_lines, read_lines

COMMENT = ";;"
MISSING = "give the test set's STM"
IGNORED = "IGNORE_TIME_SEGMENT_IN_SCORING"
GAP_SPEAKER = "inter_segment_gap"  # what the NIST files call stretches in which nobody's words are known
LINE = re.compile(
    r"(?P<recording>\S+)\s+(?P<channel>\S+)\s+(?P<speaker>\S+)\s+(?P<start>\S+)\s+(?P<end>\S+)"
    r"(?:\s+<(?P<labels>[^<>\s]*,[^<>\s]*|[Oo])>)?(?:\s+(?P<text>.*))?"
)


@dataclass(frozen=True)
class StmSegment:
    """One line of an STM file.

    Attributes:
      recording: name of the audio without its suffix, e.g. en_4156.
      channel: as the file has it, e.g. A, B or 1.
      speaker: e.g. en_4156_A.
      start, end: seconds.
      labels: the categories, e.g. ("O", "en", "F", "en-F"); empty where the line has none.
      text: the words as the file has them, marks included.
    """

    recording: str
    channel: str
    speaker: str
    start: float
    end: float
    labels: tuple[str, ...]
    text: str

    @property
    def is_ignored(self) -> bool:
        """Not scored, so not decoded either: gaps between segments, and stretches the transcribers gave up on."""
        return self.speaker == GAP_SPEAKER or IGNORED in self.text.upper().split()

    def line(self) -> str:
        """As the file has it."""
        labels = [f"<{','.join(self.labels)}>"] if self.labels else []
        times = [format_seconds(self.start), format_seconds(self.end)]
        return " ".join([self.recording, self.channel, self.speaker, *times, *labels, self.text]).rstrip()


def format_seconds(seconds: float) -> str:
    """At least two places, and as many more (up to six) as the number has: times survive a round trip."""
    whole, places = f"{seconds:.6f}".split(".")
    return f"{whole}.{places[:2]}{places[2:].rstrip('0')}"


def read_stm(path: str | Path) -> list[StmSegment]:
    """The segments of an STM file, in its order, ignored ones included.

    Raises:
      UserError: missing or empty file, or a line that is no segment.
    """
    path = Path(path)
    segments = [parse_line(line, f"{path} line {number}") for number, line in segment_lines(path)]
    if not segments:
        raise UserError(f"{path} holds no segments: is it an STM file?")
    return segments


def read_stm_header(path: str | Path) -> list[str]:
    """The comment lines before the first segment: they name the categories (LABEL, CATEGORY).

    Raises:
      UserError: missing file.
    """
    header = []
    for line in read_lines(path, MISSING, legacy=True):
        if line.strip() and not line.startswith(COMMENT):
            break
        if line.strip():
            header.append(line.rstrip())
    return header


def write_stm(path: str | Path, segments: Iterable[StmSegment], header: Iterable[str] = ()) -> None:
    """Write segments, behind the comment lines of `header`, whole or not at all."""
    with atomic_write(path) as temporary:
        lines = [*header, *(segment.line() for segment in segments)]
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def segment_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are neither empty nor comments, with their numbers from 1."""
    for number, line in numbered_lines(path, MISSING, legacy=True):
        if not line.startswith(COMMENT):
            yield number, line


def parse_line(line: str, where: str) -> StmSegment:
    """Read one segment.

    Raises:
      UserError: too few fields, or times that are none; `where` names the line.
    """
    found = LINE.fullmatch(line)
    if found is None:
        raise UserError(f"{where}: expected 'recording channel speaker start end <labels> words', found {line[:80]!r}")
    try:
        start, end = float(found["start"]), float(found["end"])
    except ValueError:
        raise UserError(f"{where}: {found['start']!r} and {found['end']!r} are no times in seconds") from None
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start <= end):
        raise UserError(f"{where}: a segment cannot run from {found['start']} to {found['end']} s")
    labels = tuple((found["labels"] or "").split(",")) if found["labels"] else ()
    text = " ".join((found["text"] or "").split())
    return StmSegment(found["recording"], found["channel"], found["speaker"], start, end, labels, text)
