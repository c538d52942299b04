#!/usr/bin/env python3
"""Make the embedded corpus: about an hour of synthetic speech in LibriSpeech's own directory layout.

    ./local/make_mini_corpus.py --output-dir download-mini/LibriSpeech

The corpus appears under its name only when it is whole: it is made beside its final place and renamed.
Texts are always the same bytes; audio is the same on the same machine, whatever the number of jobs.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from mini_plan import DEFAULT_HOURS, DEFAULT_SEED, SPLITS, Plan, Speaker, Utterance, make_plan

from lowbit_k2.errors import run_main
from lowbit_k2.processes import check_num_jobs
from lowbit_k2.synthesis.audio import SAMPLING_RATE, record
from lowbit_k2.synthesis.corpus import (
    README_NAME,
    corpus_parser,
    holds_corpus,
    synthesize_all,
    whole_folder,
)
from lowbit_k2.synthesis.espeak import Espeak, Prosody

README = """\
Synthetic speech in the directory layout of LibriSpeech, made by lowbit_k2's egs/librispeech/local/make_mini_corpus.py
with espeak-ng (hours {hours:g}, seed {seed}): {utterances} utterances of {speakers} voices, 16 kHz FLAC.
It is for trying the recipe, not for a claim about accuracy.
"""


def speaker_dir(corpus_dir: Path, speaker: Speaker) -> Path:
    return corpus_dir / speaker.split / str(speaker.id)


def synthesize_speaker(plan: Plan, corpus_dir: Path, speaker: Speaker) -> dict[int, float]:
    """Write the FLAC files and *.trans.txt of one speaker; return seconds by chapter.

    Runs in a process of its own, because espeak-ng's output depends on all that it said before in its process.
    """
    import soundfile

    espeak = Espeak()
    espeak.seed(plan.seed + speaker.id)
    rng = np.random.default_rng([plan.seed, speaker.id])
    seconds: dict[int, float] = {}
    lines: dict[int, list[str]] = {}
    for utterance in plan.utterances[speaker.id]:
        samples = say(espeak, speaker, utterance, rng)
        chapter_dir = speaker_dir(corpus_dir, speaker) / str(utterance.chapter)
        chapter_dir.mkdir(parents=True, exist_ok=True)
        soundfile.write(chapter_dir / f"{utterance.id}.flac", samples, SAMPLING_RATE, subtype="PCM_16")
        seconds[utterance.chapter] = seconds.get(utterance.chapter, 0.0) + len(samples) / SAMPLING_RATE
        lines.setdefault(utterance.chapter, []).append(f"{utterance.id} {utterance.text}\n")
    for chapter, chapter_lines in lines.items():
        path = speaker_dir(corpus_dir, speaker) / str(chapter) / f"{speaker.id}-{chapter}.trans.txt"
        path.write_text("".join(chapter_lines), encoding="utf-8")
    return seconds


def say(espeak: Espeak, speaker: Speaker, utterance: Utterance, rng: np.random.Generator) -> np.ndarray:
    """One recording, int16 (num_samples,) at 16 kHz."""
    prosody = Prosody(utterance.rate, utterance.pitch, utterance.pitch_range)
    speech = espeak.synthesize(utterance.text.lower(), speaker.voice, prosody)
    return record(speech, espeak.sampling_rate, speaker.brightness, utterance.gain, utterance.snr, rng)


def synthesize(plan: Plan, corpus_dir: Path, num_jobs: int) -> dict[int, dict[int, float]]:
    """Synthesize all speakers; return seconds by speaker and chapter."""
    work = partial(synthesize_speaker, plan, corpus_dir)
    sizes = [len(plan.utterances[s.id]) for s in plan.speakers]
    results = synthesize_all(work, plan.speakers, num_jobs, sizes)
    return {s.id: by_chapter for s, by_chapter in zip(plan.speakers, results, strict=True)}


def readme_text(plan: Plan) -> str:
    """README.TXT, by which a corpus is known again."""
    return README.format(hours=plan.hours, seed=plan.seed, utterances=plan.num_utterances, speakers=len(plan.speakers))


def write_tables(plan: Plan, corpus_dir: Path, seconds: dict[int, dict[int, float]]) -> None:
    """Write SPEAKERS.TXT, CHAPTERS.TXT, BOOKS.TXT and README.TXT in LibriSpeech's formats."""
    speakers = [";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    chapters = [";ID    |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE\n"]
    for s in plan.speakers:
        minutes = sum(seconds[s.id].values()) / 60
        speakers.append(f"{s.id:<5}| {s.sex} | {s.split:<17}| {minutes:<5.2f} | {s.voice} (synthetic)\n")
        for chapter, chapter_seconds in seconds[s.id].items():
            minutes = chapter_seconds / 60
            title = f"Chapter {chapter % 10 + 1:02d} | Sentences of the embedded grammar"
            chapters.append(f"{chapter:<7}| {s.id:<5}| {minutes:<6.2f}| {s.split:<17}| 1    | 1     | {title}\n")
    (corpus_dir / "SPEAKERS.TXT").write_text("".join(speakers), encoding="utf-8")
    (corpus_dir / "CHAPTERS.TXT").write_text("".join(chapters), encoding="utf-8")
    (corpus_dir / "BOOKS.TXT").write_text("1      | Sentences of the embedded grammar | lowbit_k2\n", encoding="utf-8")
    (corpus_dir / README_NAME).write_text(readme_text(plan), encoding="utf-8")


def make_corpus(output_dir: Path, hours: float, seed: int, num_jobs: int) -> None:
    """Make the corpus at `output_dir`, or leave nothing there; the same corpus, if it is there, stays.

    Raises:
      UserError: something else is in the way, flags out of range, or the synthesizer does not work.
    """
    check_num_jobs(num_jobs)
    plan = make_plan(hours, seed)
    if holds_corpus(output_dir, readme_text(plan)):
        print(f"{output_dir} is there already")
        return
    with whole_folder(output_dir) as partial_dir:
        seconds = synthesize(plan, partial_dir, num_jobs)
        write_tables(plan, partial_dir, seconds)
    _print_summary(plan, seconds)


def _print_summary(plan: Plan, seconds: dict[int, dict[int, float]]) -> None:
    for split in SPLITS:
        speakers = [s for s in plan.speakers if s.split == split]
        hours = sum(sum(seconds[s.id].values()) for s in speakers) / 3600
        utterances = [u for s in speakers for u in plan.utterances[s.id]]
        words = [w for u in utterances for w in u.text.split()]
        print(
            f"{split}: {hours:.3f} h, {len(utterances)} utterances, {len(speakers)} voices, "
            f"{len(words)} words, {len(set(words))} different"
        )


def main() -> None:
    args = corpus_parser(__doc__, DEFAULT_HOURS, DEFAULT_SEED).parse_args()
    make_corpus(args.output_dir, args.hours, args.seed, args.num_jobs)


if __name__ == "__main__":
    run_main(main)
