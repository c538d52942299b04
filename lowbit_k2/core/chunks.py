"""Long audio in overlapping chunks: where they lie, which output frames are kept, and where pauses cut these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lowbit_k2.core.config import Config, ConfigError, option

QUIET = math.log(0.5)  # log-probability of the blank above which a frame counts as pause
F = TypeVar("F")  # output frames of any kind


@dataclass(frozen=True)
class ChunkConfig(Config):
    """How audio is decoded that is longer than a chunk; what is no longer is decoded as a whole."""

    chunk_seconds: float = option(30.0, "longer audio is decoded in overlapping chunks; 0: as a whole", low=0)
    chunk_overlap: float = option(4.0, "seconds that neighbouring chunks share", low=0)

    def check(self) -> None:
        if 0 < self.chunk_seconds < 2 * self.chunk_overlap:
            problem = f"of {self.chunk_seconds:g} must be at least twice chunk_overlap {self.chunk_overlap:g}"
            raise ConfigError("chunk_seconds", problem)

    def frames(self, frame_shift: float) -> int:
        """Input frames of a chunk; 0: no chunks."""
        return round(self.chunk_seconds / frame_shift)


@dataclass(frozen=True)
class Chunk:
    """Input frames [start, stop) are run through the network; of what comes out [first, last) is kept."""

    start: int
    stop: int
    first: int
    last: int


def output_step(output_lens: Callable[[int], int]) -> int:
    """Input frames that an output frame stands for: a network's rate, seen in long utterances."""
    return max(1, round(10_000 / output_lens(10_000)))


def chunks(num_frames: int, size: int, overlap: int, output_lens: Callable[[int], int]) -> Iterator[Chunk]:
    """Chunks over a long utterance, at even distances. What is kept makes up the output frames of the whole, in order.

    A chunk begins at a multiple of the input frames that an output frame stands for, so that its output frames are
    those of the whole, seen with less context. Of the frames that two chunks share, each keeps the half on its side.

    Args:
      num_frames: input frames of the utterance, more than `size`.
      size: input frames of a chunk.
      overlap: input frames that neighbours share at least.
      output_lens: output frames for input frames.
    """
    step = output_step(output_lens)
    least = next(n for n in range(1, 10_000) if output_lens(n) > 0)
    size = max(size, 2 * (least + step))
    overlap = max(overlap, least + step)  # less would leave a gap between their output frames
    if num_frames <= size:
        yield Chunk(0, num_frames, 0, output_lens(num_frames))
        return
    count = -(-(num_frames - overlap) // (size - overlap))
    starts = [i * (num_frames - size) // (count - 1) // step * step for i in range(count)]
    stops = [*(start + size for start in starts[:-1]), num_frames]
    begin = 0  # output frame of the whole from which on nothing is kept yet
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        offset = start // step  # of its output frames
        end = offset + output_lens(stop - start)
        if i + 1 < count:
            end = (starts[i + 1] // step + end) // 2
        yield Chunk(start, stop, begin - offset, end - offset)
        begin = end


def cut_at_pauses(
    pieces: Iterable[F],
    longest: int,
    length: Callable[[F], int],
    join: Callable[[F, F], F],
    cut: Callable[[F, int, int], F],
    blank_scores: Callable[[F], Sequence[float] | None],
) -> Iterator[F]:
    """The same frames in other pieces: at most `longest` each, if the scores say where pauses are.

    Args:
      join, cut: two pieces behind each other; the frames first .. last-1 of a piece.
      blank_scores: log-probability that a frame brings nothing, of each; or None: then all comes in one piece.
    """
    waiting: F | None = None
    for piece in pieces:
        waiting = piece if waiting is None else join(waiting, piece)
        while length(waiting) > longest and (scores := blank_scores(waiting)) is not None:
            place = pause(scores[:longest])
            yield cut(waiting, 0, place)
            waiting = cut(waiting, place, length(waiting))
    if waiting is not None:
        yield waiting


def pause(scores: Sequence[float]) -> int:
    """Where to cut: in the middle of the longest pause of the second half, or where the blank is likeliest.

    Args:
      scores: log-probabilities of the blank, at least two.

    Returns:
      The first frame behind the cut, between half of them and all.
    """
    half = len(scores) // 2
    longest, start = (0, 0), half  # length and place of a pause
    for place in range(half, len(scores) + 1):
        if place == len(scores) or not scores[place] > QUIET:
            if place - start > longest[0]:
                longest = place - start, start
            start = place + 1
    if not longest[0]:
        return max(range(half, len(scores)), key=lambda i: scores[i])
    return longest[1] + longest[0] // 2
