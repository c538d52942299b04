"""What was said in a recording, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowbit_k2.runtime.search import Labels
from lowbit_k2.runtime.units import Units


@dataclass(frozen=True)
class Token:
    """A unit of the model. id, text: its number and its symbol. start: seconds, of the frame that it was heard in."""

    id: int
    text: str
    start: float


@dataclass(frozen=True)
class Word:
    """A word, or a phone where the model has those.

    start: seconds, where the first token begins that spells a letter of it.
    end: seconds, where the frame ends in which its last token was heard. What is said may go on a little longer.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcript:
    """What was said.

    tokens: blanks left out.
    words: what they spell.
    seconds: of audio.
    """

    tokens: tuple[Token, ...]
    words: tuple[Word, ...]
    seconds: float

    @property
    def labels(self) -> Labels:
        """Token ids."""
        return tuple(token.id for token in self.tokens)

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def make_transcript(
    units: Units, labels: Sequence[int], frames: Sequence[int], frame_seconds: float, seconds: float
) -> Transcript:
    """Times from places.

    Args:
      frames: the network's output frame of each label, counted from the beginning of the recording.
      frame_seconds: that an output frame stands for.
      seconds: of audio; no time is beyond them.
    """
    starts = [min(frame * frame_seconds, seconds) for frame in frames]
    ends = [min((frame + 1) * frame_seconds, seconds) for frame in frames]
    tokens = (Token(i, units.pieces[i], start) for i, start in zip(labels, starts, strict=True))
    words = (Word(text, starts[first], ends[last]) for text, first, last in units.spans(labels))
    return Transcript(tuple(tokens), tuple(words), seconds)
