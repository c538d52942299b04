"""CTM: lines, round trips, words from recogs files and cuts, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment

from lowbit_k2.scoring.ctm import CtmWord, ctm_from_hypotheses, share_out, write_ctm


def cut(name: str, recording: str, channel: int, start: float, duration: float) -> MonoCut:
    """A cut as compute_fbank makes it of a supervision: it begins where its words begin."""
    supervision = SupervisionSegment(name, recording, 0.0, duration, channel=channel, text="x")
    return MonoCut(name, start, duration, channel, supervisions=[supervision])


def read_ctm(path: Path) -> list[CtmWord]:
    """What a reader of the format sees."""
    fields = [line.split() for line in path.read_text().splitlines()]
    return [CtmWord(f[0], f[1], float(f[2]), float(f[3]), f[4]) for f in fields]


def test_lines() -> None:
    word = CtmWord("en_1", "A", 1.5, 0.25, "oh")
    assert word.line() == "en_1 A 1.50 0.25 oh" and word.middle == 1.625


@pytest.mark.parametrize("duration", [1.0, 0.1, 7 / 3])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_round_trip_of_equal_shares(tmp_path: Path, count: int, duration: float) -> None:
    words = share_out("a", "B", 301.85, duration, [f"w{i}" for i in range(count)])
    write_ctm(tmp_path / "a.ctm", words)
    assert read_ctm(tmp_path / "a.ctm") == words  # to the last bit: scores do not hang on the way through the file
    assert sum(word.duration for word in words) == pytest.approx(duration if count else 0, abs=1e-5)
    for first, second in zip(words, words[1:], strict=False):
        assert second.start == pytest.approx(first.start + first.duration, abs=2e-6)


def test_words_of_cuts() -> None:
    cuts = CutSet.from_cuts(
        [
            cut("u3", "sw_2", 0, 0, 1),
            cut("u1", "sw_1", 1, 10, 2),
            cut("u2", "sw_1", 0, 5, 3),
            cut("u4", "sw_1", 0, 2, 1),
        ]
    )
    hypotheses = {"u1": ["a", "b"], "u2": ["[noise]", "c", "<unk>", "[laughter]"], "u3": ["d"], "u4": []}
    words = ctm_from_hypotheses(hypotheses, cuts, {("sw_2", 0): "1"})
    assert [word.line() for word in words] == [
        "sw_1 A 5.00 3.00 c",
        "sw_1 B 10.00 1.00 a",
        "sw_1 B 11.00 1.00 b",
        "sw_2 1 0.00 1.00 d",
    ]
