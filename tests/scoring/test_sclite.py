"""NIST's sclite: where it is found, that our scorer counts what it counts, and what happens where it fails."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.scoring.ctm import CtmWord, write_ctm
from lowbit_k2.scoring.glm import HypothesisItem, filter_hypothesis, filter_reference, read_glm
from lowbit_k2.scoring.nist import score_segments, sum_up
from lowbit_k2.scoring.sclite import REPORTS, VARIABLE, find_sclite, read_counts, score_with_sclite
from lowbit_k2.scoring.stm import StmSegment, write_stm
from lowbit_k2.scoring.word_network import Counts
from tests.scoring.calls import MINI_GLM, make_calls, needs_sctk

HEADER = [';; CATEGORY "0" "" ""', ';; LABEL "O" "Overall" "Overall"']
SEGMENTS = [
    StmSegment("sw_1", "A", "a", 0.0, 1.0, ("O", "sw"), "A B"),
    StmSegment("sw_1", "B", "b", 0.0, 1.0, ("O",), "C"),
    StmSegment("sw_2", "A", "c", 0.0, 1.0, (), "D"),
]
WORDS = [HypothesisItem(((CtmWord("sw_1", "A", 0.1, 0.1, "A"),),))]


def program(folder: Path, script: str) -> Path:
    """A stand-in for sclite."""
    path = folder / "sclite"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def filtered(seed: int) -> tuple[list[StmSegment], list[HypothesisItem]]:
    segments, words = make_calls(seed)
    return (
        filter_reference(segments, read_glm(MINI_GLM, "ref"), "stm"),
        filter_hypothesis(words, read_glm(MINI_GLM, "hyp")),
    )


def test_where_it_is_found(tmp_path: Path) -> None:
    named, on_path, debian = (tmp_path / name for name in ("named", "path", "debian"))
    for folder in (named, on_path, debian):
        folder.mkdir()
    assert find_sclite({"PATH": str(on_path)}, debian) is None
    there = program(debian, "")
    assert find_sclite({"PATH": str(on_path)}, debian) == there
    first = program(on_path, "")
    assert find_sclite({"PATH": str(on_path)}, debian) == first
    with pytest.raises(UserError, match=f"{VARIABLE}=.*named holds no program sclite"):
        find_sclite({"PATH": str(on_path), VARIABLE: str(named)}, debian)
    mine = program(named, "")
    assert find_sclite({"PATH": str(on_path), VARIABLE: str(named)}, debian) == mine


@needs_sctk
@pytest.mark.parametrize("first_seed", [0, 15, 30])
def test_our_scorer_agrees_segment_by_segment(tmp_path: Path, first_seed: int) -> None:
    scored = 0
    for seed in range(first_seed, first_seed + 15):
        segments, items = filtered(seed)
        theirs = score_with_sclite(find_sclite(), segments, [], items, tmp_path)
        assert score_segments(segments, items) == theirs, seed
        scored += len(theirs)
    assert scored > 100


@needs_sctk
def test_totals_are_those_of_the_summary(tmp_path: Path) -> None:
    segments, items = filtered(3)
    stats = sum_up(score_with_sclite(find_sclite(), segments, [], items, tmp_path))
    numbers = re.search(r"\| Sum +\|(.*)\|(.*)\|", (tmp_path / "sclite.raw").read_text())
    counts, words = [[*map(int, part.split())] for part in numbers.groups()], stats.ref_words
    assert counts[0] == [stats.segments, words] and words > 50
    assert counts[1][:5] == [stats.corr, stats.sub, stats.dels, stats.ins, stats.errors]


@needs_sctk
def test_the_whole_way_is_that_of_hubscr(tmp_path: Path) -> None:
    """Raw STM and CTM through NIST's own script, which stops at a channel without words: these get one here."""
    scored = 0
    for seed in range(6):
        segments, words = make_calls(seed)
        silent = {(s.recording, s.channel) for s in segments} - {(w.recording, w.channel) for w in words}
        words += [CtmWord(*place, 0.0, 0.1, "the") for place in silent]
        words.sort(key=lambda word: (word.recording, word.channel, word.start))
        theirs = hubscr(tmp_path / str(seed), segments, words)
        reference = filter_reference(segments, read_glm(MINI_GLM, "ref"), "stm")
        ours = score_segments(reference, filter_hypothesis(words, read_glm(MINI_GLM, "hyp")))
        assert [score.counts for score in ours] == theirs, seed
        scored += len(ours)
    assert scored > 50


def hubscr(folder: Path, segments: list[StmSegment], words: list[CtmWord]) -> list[Counts]:
    """The counts by segment of NIST's hubscr.pl."""
    write_stm(folder / "ref.stm", segments, [f';; LABEL "{name}" "" ""' for name in ("O", "sw", "F")])
    write_ctm(folder / "hyp.ctm", words)
    programs = str(find_sclite().parent)
    command = [f"{programs}/hubscr.pl", "-V", "-p", programs, "-g", str(MINI_GLM), "-l", "english", "-h", "hub5"]
    command += ["-r", "ref.stm", "hyp.ctm"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    return [counts for _, counts in read_counts(folder / "hyp.ctm.filt.pra")]


@needs_sctk
def test_silent_channels_labels_and_reports(tmp_path: Path) -> None:
    """One word in one channel of one recording: sclite by itself would stop; labels without a name too."""
    scores = score_with_sclite(find_sclite(), SEGMENTS, HEADER, WORDS, tmp_path / "new")
    assert [score.counts.dels for score in scores] == [1, 1, 1] and scores[0].counts.corr == 1
    suffixes = ["sys" if report == "sum" else "raw" if report == "rsum" else report for report in REPORTS]
    assert files(tmp_path) == sorted(["new", "hyp.filt.ctm", "ref.filt.stm", *(f"sclite.{s}" for s in suffixes)])
    assert (tmp_path / "new/ref.filt.stm").read_text().startswith("\n".join(HEADER) + '\n;; LABEL "sw" "sw" "sw"\n')
    assert (tmp_path / "new/hyp.filt.ctm").read_text().splitlines() == [
        "sw_1 A 0.10 0.10 A",
        "sw_1 B 0.00 0.00 @",
        "sw_2 A 0.00 0.00 @",
    ]


@needs_sctk
def test_words_that_overflow_buffers(tmp_path: Path) -> None:
    words = [CtmWord("sw_1", "A", 0.1 * i, 0.1, "long" * 100) for i in range(5)]
    items = filter_hypothesis(words, read_glm(MINI_GLM, "hyp"))
    scores = score_with_sclite(find_sclite(), SEGMENTS, HEADER, items, tmp_path)
    assert scores == score_segments(SEGMENTS, items)


@pytest.mark.parametrize(
    ("script", "match"),
    [
        (
            "echo no >&2; echo 'no memory left' >&2; exit 3",
            r"failed with status 3 \(no memory left\): try the",
        ),
        ("kill -SEGV $$", "failed with status -11"),
        ("exit 0", r"failed with status 0 \(it said nothing\)"),
        ("echo 'Scores: (#C #S #D #I) 1 0 0 0' > sclite.pra", "scored 1 segments instead of 3"),
    ],
)
def test_a_program_that_fails_leaves_nothing(tmp_path: Path, script: str, match: str) -> None:
    fake = program(tmp_path, script)
    with pytest.raises(UserError, match=match):
        score_with_sclite(fake, SEGMENTS, HEADER, WORDS, tmp_path / "out")
    assert files(tmp_path / "out") == []


def test_a_program_that_does_not_run(tmp_path: Path) -> None:
    fake = tmp_path / "sclite"
    fake.write_text("#!/nowhere/sh\n")
    fake.chmod(0o755)
    with pytest.raises(UserError, match="cannot be run"):
        score_with_sclite(fake, SEGMENTS, HEADER, WORDS, tmp_path / "out")


def test_reading_counts(tmp_path: Path) -> None:
    path = tmp_path / "sclite.pra"
    path.write_bytes(
        b"id: (spk1-000)\nLabels: <o,sw>\nFile: SW_1\nChannel: a\nScores: (#C #S #D #I) 2 3 4 5\n"
        b"REF:  caf\xe9 Scores: (#C #S #D #I) 9 9 9 9\nEval:  I\n\n"
    )
    ((place, counts),) = read_counts(path)
    assert place == ("sw_1", "a") and (counts.corr, counts.sub, counts.dels, counts.ins) == (2, 3, 4, 5)
