#!/usr/bin/env python3
"""How near do the times of `lowbit-k2 align` come, where something is known of the true ones?

1. Utterances put behind each other: how many words have their middle inside the utterance that they were said in.
2. Silence put in front of an utterance: by how much more, or less, its words move than the silence is long.
3. The beginning of the first word after the sound begins, and the end of the last before it ends: where the energy of
   25 ms first (last) is within 25 dB of the loudest. A breath or a click is taken for speech; hence medians.

python benchmarks/alignment.py --exp-dir egs/an4/exp/tiny --manifest-dir egs/an4/data/fbank --cuts an4_cuts_test
python benchmarks/alignment.py --packed 1bit.safetensors --manifest-dir egs/an4/data/fbank --cuts an4_cuts_test

All flags of decode.py are taken; one precision.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import numpy as np

from lowbit_k2.asr.alignment import CtmLine, align
from lowbit_k2.asr.recognizer import Recognizer, make_recognizers
from lowbit_k2.data.features import extract_wav, make_extractor
from lowbit_k2.data.filter import cut_text
from lowbit_k2.data.manifests import read_cuts
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.recipe.decoding_flags import add_decoding_flags, decoding_errors, read_decoding_flags
from lowbit_k2.recipe.flags import make_parser
from lowbit_k2.tables import text_table

Utterance = tuple[np.ndarray, str]  # samples and words
JOINED = (2, 10, 40)
SILENCES = (0.1, 0.37, 1.0)  # seconds
LOUD = 25.0  # dB below the loudest


class Aligner:
    """Times of the words of samples."""

    def __init__(self, recognizer: Recognizer) -> None:
        self.recognizer, self.extractor = recognizer, make_extractor(recognizer.features)
        self.rate = recognizer.features.sampling_rate

    def __call__(self, samples: np.ndarray, text: str) -> list[CtmLine]:
        features = extract_wav(samples, self.recognizer.features, self.extractor)
        return align(self.recognizer, features, text, "x")


def joined(aligner: Aligner, utterances: Sequence[Utterance]) -> Iterator[list[str]]:
    """Table 1."""
    for number in JOINED:
        words = inside = lost = 0
        for first in range(0, len(utterances) - number + 1, number):
            group = utterances[first : first + number]
            try:
                found = aligner(np.concatenate([s for s, _ in group]), " ".join(text for _, text in group))
            except UserError:
                lost += 1
                continue
            ends = np.cumsum([len(samples) for samples, _ in group]) / aligner.rate
            owners = [i for i, (_, text) in enumerate(group) for _ in text.split()]
            middles = [line.start + line.duration / 2 for line in found]
            inside += int((np.searchsorted(ends, middles) == owners).sum())
            words += len(owners)
        yield [str(number), str(words), str(words - inside), str(lost)]


def moved(aligner: Aligner, utterances: Sequence[Utterance]) -> Iterator[list[str]]:
    """Table 2; the silence is the utterance's own quietest 50 ms, again and again."""
    before = [aligner(samples, text) for samples, text in utterances]
    for seconds in SILENCES:
        errors = []
        for (samples, text), lines in zip(utterances, before, strict=True):
            size = aligner.rate // 20
            pieces = samples[: len(samples) // size * size].reshape(-1, size)
            quiet = pieces[np.square(pieces).sum(axis=1).argmin()]
            silence = np.resize(quiet, int(seconds * aligner.rate))
            after = aligner(np.concatenate([silence, samples]), text)
            errors += [a.start - b.start - seconds for a, b in zip(after, lines, strict=True)]
        size = np.abs(errors)
        parts = [f"{np.mean(errors):+.3f}", *(f"{np.quantile(size, q):.3f}" for q in (0.5, 0.95, 1.0))]
        yield [f"{seconds:g}", str(len(errors)), *parts]


def within_sound(aligner: Aligner, utterances: Sequence[Utterance]) -> Iterator[list[str]]:
    """Table 3."""
    starts, ends = [], []
    for samples, text in utterances:
        size, shift = aligner.rate // 40, aligner.rate // 100
        windows = np.lib.stride_tricks.sliding_window_view(samples, size)[::shift]
        loudness = 10 * np.log10(np.square(windows).mean(axis=1) + 1e-12)  # (frames,)
        loud = np.flatnonzero(loudness > loudness.max() - LOUD)
        lines = aligner(samples, text)
        starts.append(lines[0].start - loud[0] * 0.01)
        ends.append(loud[-1] * 0.01 + 0.025 - lines[-1].start - lines[-1].duration)
    for name, values in (("first word begins after the sound", starts), ("last word ends before it", ends)):
        yield [name, *(f"{np.quantile(values, q):+.3f}" for q in (0.05, 0.25, 0.5, 0.75, 0.95))]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cuts", required=True, help="name of a manifest in --manifest-dir, with audio")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which utterances are put together")
    add_decoding_flags(parser)
    args = parser.parse_args()
    with decoding_errors():
        config = read_decoding_flags(args)
        recognizers = make_recognizers(config)
        if len(recognizers) != 1:
            raise UserError("give one precision")
        aligner = Aligner(recognizers[0])
        cuts = sorted(read_cuts(args.manifest_dir / f"{args.cuts}.jsonl.gz"), key=lambda cut: cut.id)
        random.Random(args.seed).shuffle(cuts)
        utterances = [(cut.load_audio()[0], cut_text(cut)) for cut in cuts]
        with recognizers[0].precision():
            print(
                text_table(["utterances joined", "words", "outside", "cannot be aligned"], joined(aligner, utterances))
            )
            head = ["silence (s)", "words", "mean error (s)", "median |error|", "95%", "largest"]
            print("\n" + text_table(head, moved(aligner, utterances)))
            print("\n" + text_table(["", "5%", "25%", "median", "75%", "95%"], within_sound(aligner, utterances)))


if __name__ == "__main__":
    run_main(main)
