"""Chunks of long audio: no output frame is lost or doubled, whatever the lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit_k2.core.chunks import Chunk, ChunkConfig, chunks, pause
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.encoders import ConformerConfig

CONFORMER = ConformerConfig().output_lens  # 4 input frames for an output frame, 7 for the first


def frames_kept(num_frames: int, size: int, overlap: int, output_lens) -> tuple[list[int], list[Chunk]]:
    """Numbers, in the whole, of the output frames that are kept."""
    found = list(chunks(num_frames, size, overlap, output_lens))
    step = round(10_000 / output_lens(10_000))
    assert all(chunk.start % step == 0 for chunk in found)
    assert all(0 <= chunk.first <= chunk.last <= output_lens(chunk.stop - chunk.start) for chunk in found)
    return [c.start // step + i for c in found for i in range(c.first, c.last)], found


@given(st.integers(7, 5000), st.integers(1, 700), st.integers(0, 300))
@pytest.mark.parametrize("output_lens", [CONFORMER, lambda n: n, lambda n: n // 2, lambda n: (n + 2) // 3])
def test_every_output_frame_of_the_whole_is_kept_once(output_lens, num_frames: int, size: int, overlap: int) -> None:
    kept, _ = frames_kept(num_frames, size, min(overlap, size // 2), output_lens)
    assert kept == list(range(output_lens(num_frames)))


def test_chunks_have_their_size_and_share_what_was_asked_for() -> None:
    for num_frames in (3001, 3100, 9000, 360_000):
        kept, found = frames_kept(num_frames, 3000, 400, CONFORMER)
        assert found[0].start == 0 and found[-1].stop == num_frames
        assert {chunk.stop - chunk.start for chunk in found[:-1]} == {3000}
        assert 3000 <= found[-1].stop - found[-1].start < 3004
        shared = [left.stop - right.start for left, right in zip(found, found[1:], strict=False)]
        assert min(shared) > 400 - 4
        # each side of a cut has at least half of the overlap as context, less the edges of the subsampling
        assert all(4 * chunk.first >= 200 - 12 for chunk in found[1:])
        assert all(4 * (CONFORMER(3000) - chunk.last) >= 200 - 12 for chunk in found[:-1])


def test_settings() -> None:
    assert ChunkConfig().frames(0.01) == 3000 and ChunkConfig(chunk_seconds=0).frames(0.01) == 0
    with pytest.raises(ConfigError, match="chunk_seconds of 5 must be at least twice chunk_overlap 4"):
        ChunkConfig(chunk_seconds=5)


def test_cuts_lie_in_the_longest_pause() -> None:
    quiet = [-5.0] * 100
    for first, last in ((10, 40), (60, 64), (70, 81), (99, 100)):
        quiet[first:last] = [-0.1] * (last - first)
    assert pause(quiet) == 75
    assert pause([-0.1] * 100) == 75
    busy = [-9 + i / 99 for i in range(100)]
    busy[60] = -7.0
    assert pause(busy) == 60 and pause(busy[:2]) == pause(quiet[:2]) == 1
