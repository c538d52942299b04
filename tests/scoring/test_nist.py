"""Which hypothesis words belong to which segment, what is not scored, and totals."""

from __future__ import annotations

import pytest

from lowbit_k2.scoring.ctm import CtmWord
from lowbit_k2.scoring.glm import GlobalMap, HypothesisItem, Rule, filter_hypothesis, filter_reference, read_glm
from lowbit_k2.scoring.nist import ScoreStats, deal_out, in_scoring_order, is_scored, score_segments, sum_up
from lowbit_k2.scoring.stm import GAP_SPEAKER, IGNORED, StmSegment
from lowbit_k2.scoring.word_network import Counts
from tests.scoring.calls import MINI_GLM, make_calls

KEEP = GlobalMap((Rule("NOTHING", ""),))


def segment(start: float, end: float, text: str, channel: str = "A", recording: str = "sw_1") -> StmSegment:
    return StmSegment(recording, channel, "speaker", start, end, (), text)


def spoken(*words: tuple[float, str], channel: str = "A", recording: str = "sw_1") -> list[HypothesisItem]:
    """Words around their middles."""
    return filter_hypothesis([CtmWord(recording, channel, t - 0.05, 0.1, word) for t, word in words], KEEP)


def test_words_go_where_their_middle_is() -> None:
    segments = [segment(1, 2, ""), segment(3, 4, ""), segment(4, 5, "")]
    items = spoken((0.5, "a"), (1.5, "b"), (2.5, "c"), (3.99, "d"), (4.01, "e"), (9, "f"))
    shares = deal_out(segments, items)
    texts = [" ".join(item.alternatives[0][0].word for item in share) for share in shares]
    assert texts == ["A B", "C D", "E F"]  # the gap before a segment is its own, and the last takes the rest
    assert deal_out([], []) == []


def test_alternatives_go_with_the_latest_word() -> None:
    glm = GlobalMap((Rule("X", "{B / B C}"),))
    items = filter_hypothesis([CtmWord("sw_1", "A", 1.6, 0.8, "x")], glm)  # middles 2.0, and 1.8 and 2.2
    assert [len(share) for share in deal_out([segment(1, 2.1, ""), segment(2.1, 3, "")], items)] == [0, 1]


def test_ignored_segments_take_their_words_with_them() -> None:
    segments = [segment(0, 1, "a"), segment(1, 2, IGNORED), segment(2, 3, "b")]
    scores = score_segments(segments, spoken((0.5, "a"), (1.5, "x"), (2.5, "b")))
    assert [score.counts for score in scores] == [Counts(corr=1), Counts(corr=1)]
    gap = StmSegment("sw_1", "A", GAP_SPEAKER, 0, 1, (), "")
    assert is_scored(gap) and not is_scored(segment(0, 1, f"the {IGNORED.lower()}"))
    (score,) = score_segments([gap], spoken((0.5, "x")))
    assert score.counts == Counts(ins=1)


def test_channels_and_recordings_are_apart_and_case_is_not() -> None:
    segments = [segment(2, 3, "d", "B"), segment(0, 1, "a"), segment(0, 9, "c", "B"), segment(0, 1, "e", "A", "EN_1")]
    assert [s.text for s in in_scoring_order(segments)] == ["e", "a", "c", "d"]
    items = spoken((0.5, "a")) + spoken((0.5, "c"), (9.5, "d"), channel="b")
    items += spoken((0.5, "e"), recording="en_1") + spoken((0.5, "z"), recording="sw_9") + spoken((0, "z"), channel="C")
    scores = score_segments(segments, items)
    assert [(score.segment.text, score.counts) for score in scores] == [(t, Counts(corr=1)) for t in "eacd"]


def test_totals() -> None:
    scores = score_segments([segment(0, 1, "a b c"), segment(1, 2, "")], spoken((0.5, "a"), (0.6, "x"), (1.5, "y")))
    stats = sum_up(scores)
    assert stats == ScoreStats(segments=2, ref_words=3, sub=1, ins=1, dels=1)
    assert (stats.corr, stats.errors, stats.rate) == (1, 3, 1.0)
    assert str(stats) == "%WER 100.00% [3 / 3, 1 ins, 1 del, 1 sub ]"
    assert sum_up([]).rate == 0.0 and ScoreStats(2, 0, 0, 0, segments=1).rate == float("inf")


@pytest.mark.parametrize(
    ("seed", "by_sclite"),
    [
        (3, ScoreStats(22, 33, 7, 117, segments=16)),
        (5, ScoreStats(12, 20, 9, 106, segments=17)),
        (8, ScoreStats(1, 8, 1, 20, segments=8)),
        (12, ScoreStats(16, 75, 25, 205, segments=33)),
        (17, ScoreStats(33, 56, 17, 203, segments=26)),
    ],
)
def test_totals_that_sclite_gave(seed: int, by_sclite: ScoreStats) -> None:
    """Recorded from sclite 2.10, for machines without it; test_sclite.py asks sclite itself, segment by segment."""
    segments, words = make_calls(seed)
    reference = filter_reference(segments, read_glm(MINI_GLM, "ref"), "stm")
    scores = score_segments(reference, filter_hypothesis(words, read_glm(MINI_GLM, "hyp")))
    assert sum_up(scores) == by_sclite
