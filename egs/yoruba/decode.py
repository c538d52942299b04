#!/usr/bin/env python3
"""Decode read Yoruba, or audio files, with a trained or a packed model.

./decode.py --exp-dir exp/cotrain --avg 5 --precision 2 1.5 1 --decoding-method ctc-greedy-search,1best
./decode.py --exp-dir exp/cotrain --avg 5 --test-sets dev --decoding-method 1best --lm-scale 0.3,0.6,1   # choose
./decode.py --packed exp/cotrain/pretrained-1bit.safetensors --decoding-method ctc-greedy-search,1best
./decode.py --packed exp/cotrain/pretrained-1bit.safetensors --wav speech.wav
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
from lowbit_k2.recipe.flags import make_parser

DEFAULTS = {
    "lang_dir": HERE / "data/lang_char",
    "manifest_dir": HERE / "data/fbank",
    "exp_dir": HERE / "exp/tiny",
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--test-sets", default="test", help="dev, test, or both by a comma")
    add_decoding_flags(parser)
    parser.set_defaults(**DEFAULTS)
    args = parser.parse_args()
    names, config = args.test_sets.split(","), read_decoding_flags(args)
    with decoding_errors():
        if args.wav:
            return run_transcription(config, args.wav)
        run_decode(config, lambda: {name: load_cuts(config.manifest_dir, "yoruba", name) for name in names})


if __name__ == "__main__":
    run_main(main)
