#!/usr/bin/env python3
"""What do chunks cost in accuracy, and what do they save?

Utterances of a test set are put behind each other, in an order drawn by chance, to recordings of one to three minutes,
which are decoded as a whole (chunk 0) and in chunks. The first row has the utterances by themselves. Each row is a
process of its own: memory is its peak, seconds are those of reading features, network and searches.

python benchmarks/long_audio.py --exp-dir egs/an4/exp/tiny --manifest-dir egs/an4/data/fbank --cuts an4_cuts_test
python benchmarks/long_audio.py --packed 1bit.safetensors --manifest-dir egs/an4/data/fbank --cuts an4_cuts_test \
  --chunks 0 30:4 10:2 --decoding-method 1best --lang-dir egs/an4/data/lang_char

Chunks are seconds:overlap. All flags of decode.py are taken.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import numpy as np

from lowbit_k2.asr.recognizer import make_recognizers
from lowbit_k2.asr.transcription import transcribe
from lowbit_k2.core.chunks import ChunkConfig
from lowbit_k2.data.features import extract_wav, make_extractor
from lowbit_k2.data.filter import cut_text
from lowbit_k2.data.manifests import read_cuts
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.processes import peak_memory
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.decoding_flags import add_decoding_flags, decoding_errors, read_decoding_flags
from lowbit_k2.recipe.flags import make_parser
from lowbit_k2.scoring.wer import score
from lowbit_k2.tables import text_table

DEFAULTS = ["0", "60:4", "30:2", "30:4", "30:8", "15:2", "15:4", "10:2", "5:1"]


def recordings(args: argparse.Namespace, alone: bool) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Samples and words of each recording, every utterance once."""
    draw = random.Random(args.seed)
    cuts = sorted(read_cuts(args.manifest_dir / f"{args.cuts}.jsonl.gz"), key=lambda cut: cut.id)
    draw.shuffle(cuts)
    samples: list[np.ndarray] = []
    words: list[str] = []
    wanted = 0.0 if alone else draw.uniform(args.shortest, args.longest)
    for number, cut in enumerate(cuts, 1):
        samples.append(cut.load_audio()[0])
        words += cut_text(cut).split()
        if sum(map(len, samples)) >= wanted * cut.sampling_rate or number == len(cuts):
            yield np.concatenate(samples), words
            samples, words, wanted = [], [], wanted and draw.uniform(args.shortest, args.longest)


def measure(args: argparse.Namespace, chunking: ChunkConfig | None) -> dict[str, float | str]:
    """Errors, seconds and peak memory in this process; None: utterances by themselves."""
    recognizers = make_recognizers(
        replace(read_decoding_flags(args), chunking=chunking or ChunkConfig(chunk_seconds=0))
    )
    if len(recognizers) != 1 or len(recognizers[0].searches) != 1:
        raise UserError("give one precision, one method and one --lm-scale")
    [recognizer] = recognizers
    config = recognizer.features
    extractor = make_extractor(config)
    results, audio = [], 0.0
    start = time.perf_counter()
    with recognizer.precision():
        for number, (samples, words) in enumerate(recordings(args, alone=chunking is None)):
            results.append((str(number), words, transcribe(recognizer, extract_wav(samples, config, extractor))))
            audio += len(samples) / config.sampling_rate
    return {
        "recordings": len(results),
        "mean": audio / len(results),
        "wer": str(score(results)),
        "rtf": (time.perf_counter() - start) / audio,
        "memory": peak_memory() / 1e6,
    }


def read_chunks(text: str) -> ChunkConfig | None:
    """`30:4` -> 30 seconds with 4 of overlap; `alone` -> None."""
    if text == "alone":
        return None
    seconds, _, overlap = text.partition(":")
    return ChunkConfig(chunk_seconds=float(seconds), chunk_overlap=float(overlap or 0))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cuts", required=True, help="name of a manifest in --manifest-dir, with audio")
    parser.add_argument("--chunks", nargs="+", default=DEFAULTS, metavar="SECONDS:OVERLAP", help="rows; 0: as a whole")
    parser.add_argument("--shortest", type=float, default=60.0, help="seconds of a recording")
    parser.add_argument("--longest", type=float, default=180.0, help="seconds of a recording")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the row of this process
    add_decoding_flags(parser)
    args = parser.parse_args()
    with decoding_errors():
        if args.one is not None:
            print(json.dumps(measure(args, read_chunks(args.one))))
            return
    rows = []
    for chunk in progress_bar(["alone", *args.chunks], "rows", leave=False):
        command = [sys.executable, __file__, *sys.argv[1:], "--one", chunk]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UserError(f"chunks of {chunk} cannot be measured")
        r = json.loads(done.stdout.splitlines()[-1])
        rows.append([chunk, r["recordings"], f"{r['mean']:.0f}", r["wer"], f"{r['rtf']:.4f}", f"{r['memory']:.0f}"])
    print(text_table(["chunk:overlap", "recordings", "seconds each", "errors", "RTF", "MB"], rows))


if __name__ == "__main__":
    run_main(main)
