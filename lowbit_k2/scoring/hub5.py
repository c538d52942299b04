"""Conversational telephone speech scored by NIST's rules: decode's recogs file, cuts, STM and GLM in, error rates out.

As hubscr.pl does for English hub5 tests: reference and hypothesis go through the GLM, sclite aligns them, and the
counts are given for each part of the test set and for all of it. Without sclite our own scorer counts (`nist.py`), to
the same numbers. The hypothesis file is a CTM made here, since our decoders give words without times.

Our models write acronyms as eval2000's reference does, `u s a`. Where a reference has `U. S. A.`, as rt03's, both sides
lose these dots once the GLM has been applied. (Kaldi's recipe for rt03 gives them to the hypothesis instead; for that
one has to know which words are acronyms.)
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write, write_json
from lowbit_k2.scoring.ctm import CHANNELS, CtmWord, ctm_from_hypotheses, write_ctm
from lowbit_k2.scoring.glm import filter_hypothesis, filter_reference, read_glm, write_filtered_ctm
from lowbit_k2.scoring.nist import (
    ScoreStats,
    SegmentScore,
    in_scoring_order,
    place_of,
    score_segments,
    segment_place,
    sum_up,
)
from lowbit_k2.scoring.recogs import read_hypotheses
from lowbit_k2.scoring.sclite import HYPOTHESIS, NAME, REFERENCE, VARIABLE, find_sclite, score_with_sclite
from lowbit_k2.scoring.stm import StmSegment, format_seconds, read_stm, read_stm_header, write_stm
from lowbit_k2.tables import markdown_table

if TYPE_CHECKING:
    from lhotse import CutSet

SCORERS = ("auto", "sclite", "python")
LETTER = re.compile(r"(?<![^\s({/])[b-hj-np-z](\.?)(?![^\s)}/])", re.IGNORECASE)  # no a, i, o, which are words, too
ALL = "all"
REST = "other"  # recordings of the reference that no cut belongs to
ORDER = ("swbd", "callhm", "swbd1", "swbd2", "swbdcell", "fsh")
NAMES = {"sclite": "NIST's sclite", "python": "lowbit_k2's own scorer (by NIST's rules, without sclite)"}


@dataclass(frozen=True)
class Score:
    """Error rates of one hypothesis.

    Attributes:
      scorer: "sclite" or "python", whichever counted.
      subsets: by the name of the subset; the last is "all", the average over subsets weighted by their words.
    """

    scorer: str
    subsets: dict[str, ScoreStats]


def score(recogs: Path, cuts: CutSet, stm: Path, glm: Path, output_dir: Path, scorer: str = "auto") -> Score:
    """Score hypotheses and leave files to look into.

    Args:
      recogs: recogs-*.txt of decode.py.
      cuts: of the test set, one supervision each, whose `custom["subset"]` names the part that its recording is in.
      stm: reference.
      glm: its global mapping file.
      output_dir: gets hyp.ctm, ref.filt.stm, hyp.filt.ctm, segments.tsv (counts by segment), scores.json,
        scores.txt (the table) and sclite's reports.
      scorer: "sclite", "python", or "auto": sclite where it is installed.

    Raises:
      UserError: a file that is missing, damaged or of another test set; sclite wanted and not installed, or it failed.
    """
    program = choose_scorer(scorer)
    reference, header = read_stm(stm), read_stm_header(stm)
    maps = [replace(read_glm(glm, kind), letter_dots=not has_letter_dots(reference)) for kind in ("ref", "hyp")]
    words = hypothesis_words(recogs, cuts, reference, stm)
    filtered = in_scoring_order(filter_reference(reference, maps[0], stm))
    try:
        items = filter_hypothesis(words, maps[1])
    except UserError as error:
        raise UserError(f"{recogs}, a word through {glm}: {error}") from None
    output_dir.mkdir(parents=True, exist_ok=True)
    write_ctm(output_dir / "hyp.ctm", words)
    if program is not None:
        scores = score_with_sclite(program, filtered, header, items, output_dir)
    else:
        for path in output_dir.glob(f"{NAME}.*"):  # of an earlier run, by sclite
            path.unlink()
        write_stm(output_dir / REFERENCE, filtered, header)
        write_filtered_ctm(output_dir / HYPOTHESIS, items)
        scores = score_segments(filtered, items)
    subsets = subsets_of(cuts)
    done = Score("python" if program is None else "sclite", by_subset(scores, subsets))
    write_results(output_dir, done, scores, subsets)
    return done


def has_letter_dots(reference: Iterable[StmSegment]) -> bool:
    """Whether more of the reference's single letters are written with a dot than without."""
    dots = [dot for segment in reference for dot in LETTER.findall(segment.text)]
    return dots.count(".") > len(dots) / 2


def choose_scorer(scorer: str) -> Path | None:
    """The sclite to use, None for our own scorer.

    Raises:
      UserError: sclite is wanted and not installed.
    """
    if scorer == "python":
        return None
    program = find_sclite()
    if program is None and scorer == "sclite":
        raise UserError(
            "sclite is not installed: `apt-get install sctk` (Debian, Ubuntu), or let "
            f"{VARIABLE} name the folder that holds it, or use the Python scorer"
        )
    return program


def hypothesis_words(recogs: Path, cuts: CutSet, reference: Sequence[StmSegment], stm: Path) -> list[CtmWord]:
    """The hypotheses as a CTM's words, in the recordings and channels that the reference has.

    Raises:
      UserError: hypotheses of other utterances than the cuts, cuts of other recordings than the reference, or cuts
        that are no utterances.
    """
    hypotheses = read_hypotheses(recogs)
    known = {cut.id: len(cut.supervisions) for cut in cuts}
    strange = [utterance for utterance in hypotheses if utterance not in known]
    if strange:
        raise UserError(
            f"{recogs}: {len(strange)} of {len(hypotheses)} utterances are not among the cuts, first {strange[0]}: "
            "give the recogs file and the cuts of one test set"
        )
    odd = [cut_id for cut_id, supervisions in known.items() if supervisions != 1]
    if odd:
        raise UserError(f"cut {odd[0]} has {known[odd[0]]} supervisions: give cuts of single utterances")
    unheard = len(known) - len(hypotheses)
    if unheard:
        logging.warning("%s lacks %d of %d cuts: all their words count as deleted", recogs, unheard, len(known))
    places = {segment_place(segment) for segment in reference}
    all_words = ctm_from_hypotheses(hypotheses, cuts, channel_names(reference))
    words = [word for word in all_words if place_of(word.recording, word.channel) in places]
    check_places({cut.supervisions[0].recording_id for cut in cuts}, {recording for recording, _ in places}, stm)
    if len(words) < len(all_words):
        lost = {(word.recording, word.channel) for word in all_words} - {(w.recording, w.channel) for w in words}
        what = " ".join(min(lost))
        logging.warning("%s lacks %d channels that have words, first %s: these are not scored", stm, len(lost), what)
    return words


def check_places(recordings: Collection[str], of_reference: Collection[str], stm: Path) -> None:
    """Cuts and reference have recordings in common; `of_reference` are in lower case.

    Raises:
      UserError: they have none.
    """
    if not any(recording.lower() in of_reference for recording in recordings):
        raise UserError(
            f"{stm} has none of the {len(recordings)} recordings of the cuts, for example not {min(recordings)}: "
            "give the reference of this test set"
        )


def channel_names(reference: Iterable[StmSegment]) -> dict[tuple[str, int], str]:
    """What the reference calls a recording's (lower case) channel 0 or 1: A and B, or 1 and 2."""
    indices = {name: i for i, pair in enumerate(zip(CHANNELS, "12", strict=True)) for name in pair}
    return {
        (segment.recording.lower(), indices[segment.channel.upper()]): segment.channel
        for segment in reference
        if segment.channel.upper() in indices
    }


def subsets_of(cuts: CutSet) -> dict[str, str]:
    """The subset of each recording (lower case); empty if the cuts name none."""
    named = ((cut.supervisions[0], (cut.supervisions[0].custom or {}).get("subset")) for cut in cuts)
    return {supervision.recording_id.lower(): subset for supervision, subset in named if subset}


def by_subset(scores: Iterable[SegmentScore], subsets: Mapping[str, str]) -> dict[str, ScoreStats]:
    """Totals by subset, the known ones in NIST's order, and of all."""
    scores = list(scores)
    parts: defaultdict[str, list[SegmentScore]] = defaultdict(list)
    for one in scores if subsets else ():
        parts[subsets.get(one.segment.recording.lower(), REST)].append(one)
    order = [*(name for name in ORDER if name in parts), *sorted(set(parts) - set(ORDER))]
    return {**{name: sum_up(parts[name]) for name in order}, ALL: sum_up(scores)}


def write_results(output_dir: Path, done: Score, scores: Iterable[SegmentScore], subsets: Mapping[str, str]) -> None:
    """Write scores.json, scores.txt and segments.tsv."""
    counts = {name: {**vars(stats), "corr": stats.corr, "rate": stats.rate} for name, stats in done.subsets.items()}
    write_json(output_dir / "scores.json", {"scorer": done.scorer, "subsets": counts})
    with atomic_write(output_dir / "scores.txt") as temporary:
        temporary.write_text(format_score(done) + "\n", encoding="utf-8")
    with atomic_write(output_dir / "segments.tsv") as temporary, temporary.open("w", encoding="utf-8") as out:
        out.write("recording\tchannel\tspeaker\tstart\tend\tsubset\tcorr\tsub\tins\tdel\n")
        for one in scores:
            s, c = one.segment, one.counts
            where = [s.recording, s.channel, s.speaker, format_seconds(s.start), format_seconds(s.end)]
            where.append(subsets.get(s.recording.lower(), REST if subsets else ALL))
            out.write("\t".join([*where, *map(str, (c.corr, c.sub, c.ins, c.dels))]) + "\n")


def format_score(done: Score) -> str:
    """A table with one column for each subset, and who counted."""
    rows = {
        "%WER": [f"{100 * s.rate:.2f}" for s in done.subsets.values()],
        "words": [str(s.ref_words) for s in done.subsets.values()],
        "ins / del / sub": [f"{s.ins} / {s.dels} / {s.sub}" for s in done.subsets.values()],
        "segments": [str(s.segments) for s in done.subsets.values()],
    }
    table = markdown_table(["", *done.subsets], [[name, *cells] for name, cells in rows.items()])
    return f"{table}\nScored by {NAMES[done.scorer]}; `{ALL}` weights the parts by their words."
