"""NIST's CTM format: recognised words with their times, and how to make one from decode's recogs file.

    en_4156 A 301.85 0.21 oh

Fields: recording, channel, start and duration in seconds, word; a confidence may follow and is not used. Lines that
begin with `;;` are comments. The format is that which NIST's SCTK reads.

Our decoders give words without times, so the words of an utterance get equal shares of it: scoring needs times only
to tell which reference segment a word belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2.fileio import atomic_write
from lowbit_k2.scoring.stm import format_seconds

if TYPE_CHECKING:
    from lhotse import CutSet

CHANNELS = "AB"  # what the channels are called that lhotse counts from 0
NO_WORD = re.compile(r"\[.*\]|<.*>")  # [noise], [laughter], <unk>: never a spoken word of a reference
# What NIST's formats give a meaning to: alternatives, optional words, the word that stands for none. A recogniser that
# puts such a sign out means nothing by it: the word is wrong, so it gets another sign, which no reference has.
SIGNS = re.compile(r"[{}()<>@*\\|\x00-\x20\x7f]")
WRONG = "#"


@dataclass(frozen=True)
class CtmWord:
    """One recognised word.

    Attributes:
      recording: as in the STM file.
      channel: as in the STM file, A or B.
      start, duration: seconds.
      word: as recognised.
    """

    recording: str
    channel: str
    start: float
    duration: float
    word: str

    @property
    def middle(self) -> float:
        """What decides to which segment the word belongs."""
        return self.start + self.duration / 2

    def line(self) -> str:
        """As the file has it."""
        times = [format_seconds(self.start), format_seconds(self.duration)]
        return " ".join([self.recording, self.channel, *times, self.word])


def write_ctm(path: str | Path, words: Iterable[CtmWord]) -> None:
    """Write words, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{word.line()}\n" for word in words), encoding="utf-8")


def share_out(recording: str, channel: str, start: float, duration: float, words: Sequence[str]) -> list[CtmWord]:
    """Words in equal shares of a stretch of time, to the microsecond, which is what a CTM file holds."""
    share = duration / max(len(words), 1)
    starts = (round(start + i * share, 6) for i in range(len(words)))
    return [
        CtmWord(recording, channel, begin, round(share, 6), word) for begin, word in zip(starts, words, strict=True)
    ]


def ctm_from_hypotheses(
    hypotheses: Mapping[str, Sequence[str]], cuts: CutSet, channels: Mapping[tuple[str, int], str] | None = None
) -> list[CtmWord]:
    """Words with times, sorted by recording, channel and start; non-words ([noise], <unk>) are left out.

    Signs of NIST's formats in a word are replaced, so that it is one wrong word and nothing else.

    Args:
      hypotheses: words by the id of the cut.
      cuts: each with one supervision; cuts without a hypothesis give no words.
      channels: what the reference calls a recording (lower case) and its channel 0 or 1, where that is not A or B.
    """
    words = []
    for cut in cuts:
        spoken = [word for word in hypotheses.get(cut.id, ()) if word and not NO_WORD.fullmatch(word)]
        if spoken:
            supervision = cut.supervisions[0]
            recording, channel = supervision.recording_id, _first(supervision.channel)
            name = (channels or {}).get((recording.lower(), channel)) or CHANNELS[channel % 2]
            spoken = [SIGNS.sub(WRONG, word) for word in spoken]
            words += share_out(recording, name, cut.start + supervision.start, supervision.duration, spoken)
    return sorted(words, key=lambda word: (word.recording, word.channel, word.start))


def _first(channel: int | Sequence[int]) -> int:
    return channel if isinstance(channel, int) else channel[0]
