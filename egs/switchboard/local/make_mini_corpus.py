#!/usr/bin/env python3
"""Make the embedded corpus: about an hour of synthetic telephone talk, in the layout of the LDC's discs.

    ./local/make_mini_corpus.py --output-dir download-mini

Beneath it come LDC97S62 (two-channel SPHERE, tables of callers and calls), swb_ms98_transcriptions (with the
dictionary), LDC2002S09 and LDC2002T43 (a test set in two halves, with STM, PEM and GLM). The corpus appears under its
name only when it is whole. Words are the same on every machine; audio, and the times in the transcripts, are the same
on the same machine, whatever the number of jobs.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from mini_calls import DEFAULT_HOURS, DEFAULT_SEED, SHARES, Call, Plan, make_plan
from mini_dialogue import spoken_words
from mini_dictionary import dictionary_text
from mini_discs import audio_path, write_eval, write_ms98, write_sphere, write_tables
from mini_line import LINE_RATE
from mini_talk import Talk, make_call

from lowbit_k2.errors import run_main
from lowbit_k2.processes import check_num_jobs
from lowbit_k2.synthesis.corpus import (
    README_NAME,
    corpus_parser,
    holds_corpus,
    synthesize_all,
    whole_folder,
)
from lowbit_k2.synthesis.espeak import Espeak

GLM = Path(__file__).with_name("mini.glm")
README = """\
Synthetic telephone conversations in the layout of LDC97S62, LDC2002S09, LDC2002T43 and ISIP's transcripts, made by
lowbit_k2's egs/switchboard/local/make_mini_corpus.py with espeak-ng (hours {hours:g}, seed {seed}): {calls} calls of
{callers} voices, 8 kHz mu-law. Nothing in it comes from those corpora. It is for trying the recipe, not for a claim
about accuracy.
"""


def synthesize_call(root: Path, seed: int, call: Call) -> Talk:
    """Write the audio of one call; return who said what when. Runs in a process of its own."""
    espeak = Espeak()
    espeak.seed(seed + call.number)
    audio, talk = make_call(espeak, call, np.random.default_rng([seed, call.number]))
    write_sphere(audio_path(root, call), audio)
    return talk


def readme_text(plan: Plan) -> str:
    """README.TXT, by which a corpus is known again."""
    return README.format(hours=plan.hours, seed=plan.seed, calls=len(plan.calls), callers=len(plan.callers))


def make_corpus(plan: Plan, output_dir: Path, num_jobs: int) -> None:
    """Make the corpus at `output_dir`, or leave nothing there; the same corpus, if it is there, stays.

    Raises:
      UserError: something else is in the way, num_jobs out of range, or the synthesizer does not work.
    """
    check_num_jobs(num_jobs)
    if holds_corpus(output_dir, readme_text(plan)):
        print(f"{output_dir} is there already")
        return
    with whole_folder(output_dir) as root:
        sizes = [len(call.turns) for call in plan.calls]
        work = partial(synthesize_call, root, plan.seed)
        talks = synthesize_all(work, plan.calls, num_jobs, sizes, unit="turn")
        by_number = {call.number: talk for call, talk in zip(plan.calls, talks, strict=True)}
        words = spoken_words()
        (dictionary,) = synthesize_all(dictionary_text, [words], 1, [len(words)], unit="word")
        write_ms98(root, plan, by_number, dictionary)
        write_tables(root, plan, by_number)
        write_eval(root, plan, by_number)
        shutil.copyfile(GLM, root / "LDC2002T43" / "reference" / "en20000405_hub5.glm")
        (root / README_NAME).write_text(readme_text(plan), encoding="utf-8")
    print_summary(plan, by_number)


def print_summary(plan: Plan, talks: dict[int, Talk]) -> None:
    """Speech (segments with words), calls, callers and words by part."""
    for part in SHARES:
        calls = plan.part(part)
        segments = [s for call in calls for s in talks[call.number].segments if s.words]
        hours = sum(s.end - s.start for s in segments) / LINE_RATE / 3600
        words = [w for s in segments for w in s.words]
        voices = len({c for call in calls for c in call.callers})
        print(
            f"{part}: {hours:.3f} h in {len(segments)} segments, {len(calls)} calls of {voices} voices, "
            f"{len(words)} words, {len(set(words))} different"
        )


def main() -> None:
    args = corpus_parser(__doc__, DEFAULT_HOURS, DEFAULT_SEED).parse_args()
    make_corpus(make_plan(args.hours, args.seed), args.output_dir, args.num_jobs)


if __name__ == "__main__":
    run_main(main)
