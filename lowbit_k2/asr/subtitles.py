"""Words with times to subtitles: SubRip (SRT) and WebVTT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lowbit_k2.core.text import printable
from lowbit_k2.runtime import Transcript, Word

PAUSE = 1.0  # seconds between words that always part two subtitles
MAX_SECONDS, MAX_LETTERS, LINE = 7.0, 84, 42  # of a subtitle, of it, of one of its lines: customary in television
MIN_SECONDS = 1.0  # that one stays, if the next leaves it so long


@dataclass(frozen=True)
class Subtitle:
    """A text of one or two lines that is shown from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def subtitles(transcript: Transcript) -> Iterator[Subtitle]:
    """The words in pieces that can be read, cut at pauses, in order and without overlap."""
    pieces = list(_pieces(transcript.words))
    starts = [piece[0].start for piece in pieces] + [max(transcript.seconds, pieces[-1][-1].end if pieces else 0)]
    for piece, following in zip(pieces, starts[1:], strict=True):
        start, end = piece[0].start, piece[-1].end
        yield Subtitle(start, min(max(end, start + MIN_SECONDS), following), _lines([word.text for word in piece]))


def _pieces(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    begin = 0
    for i in range(1, len(words) + 1):
        if i == len(words) or words[i].start - words[i - 1].end >= PAUSE:
            yield from _halves(words[begin:i])
            begin = i


def _halves(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """Words without a long pause, cut at the longest of the middle half, and again, until all pieces fit."""
    letters = sum(len(word.text) + 1 for word in words) - 1
    if len(words) == 1 or (letters <= MAX_LETTERS and words[-1].end - words[0].start <= MAX_SECONDS):
        yield words
        return
    middle = range(max(1, len(words) // 4), min(len(words) - 1, -(-3 * len(words) // 4)) + 1)
    cut = max(middle, key=lambda i: (round(words[i].start - words[i - 1].end, 3), -abs(2 * i - len(words))))
    yield from _halves(words[:cut])
    yield from _halves(words[cut:])


def _lines(words: Sequence[str]) -> str:
    """In two lines of about the same length where one would be too long."""
    text = " ".join(words)
    if len(text) <= LINE or len(words) == 1:
        return text
    cuts = [" ".join(words[:i]) for i in range(1, len(words))]
    first = min(cuts, key=lambda part: max(len(part), len(text) - len(part) - 1))
    return f"{first}\n{text[len(first) + 1 :]}"


def as_srt(transcript: Transcript) -> str:
    """SubRip: numbered, hours:minutes:seconds,milliseconds."""
    blocks = (
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{_shown(cue.text)}\n"
        for number, cue in enumerate(subtitles(transcript), 1)
    )
    return "\n".join(blocks)


def as_vtt(transcript: Transcript) -> str:
    """WebVTT, as browsers read it beside <video>."""
    marks = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    blocks = (
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{_shown(cue.text).translate(marks)}\n"
        for cue in subtitles(transcript)
    )
    return "\n".join(["WEBVTT\n", *blocks])


def _shown(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _time(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{milliseconds:03d}"
