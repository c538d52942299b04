#!/usr/bin/env python3
"""Decode LibriSpeech, the embedded corpus (--mini true), or audio files, with a trained or a packed model.

./decode.py --exp-dir exp/paper --avg 5 --use-averaged-model true --precision 2 1 --decoding-method 1best
./decode.py --mini true --precision 1 --decoding-method ctc-greedy-search,1best
./decode.py --mini true --packed exp-mini/demo/pretrained-1bit.safetensors
./decode.py --packed exp/paper/pretrained-1bit.safetensors --wav speech.flac
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.asr.decoding import run_decode
from lowbit_k2.asr.transcription import run_transcription
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import run_main
from lowbit_k2.recipe.decoding_flags import add_decoding_flags, decoding_errors, read_decoding_flags
from lowbit_k2.recipe.flags import add_mini_argument, make_parser, wants_mini

MINI = {
    "exp_dir": HERE / "exp-mini/demo",
    "lang_dir": HERE / "data-mini/lang_char",
    "manifest_dir": HERE / "data-mini/fbank",
    "test_sets": "test-clean",
}
REAL = {
    "exp_dir": HERE / "exp/paper",
    "lang_dir": HERE / "data/lang_bpe_500",
    "manifest_dir": HERE / "data/fbank",
    "test_sets": "test-clean,test-other",
}


def main() -> None:
    parser = make_parser(__doc__)
    add_mini_argument(parser)
    parser.add_argument("--test-sets", help="names of splits, by commas: dev-clean, test-other, ...")
    add_decoding_flags(parser)
    parser.set_defaults(**(MINI if wants_mini() else REAL))
    args = parser.parse_args()
    names, config = args.test_sets.split(","), read_decoding_flags(args)
    with decoding_errors():
        if args.wav:
            return run_transcription(config, args.wav)
        run_decode(config, lambda: {name: load_cuts(config.manifest_dir, "librispeech", name) for name in names})


if __name__ == "__main__":
    run_main(main)
