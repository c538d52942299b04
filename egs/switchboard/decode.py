#!/usr/bin/env python3
"""Decode Switchboard's test sets, the embedded conversations (--mini true), or audio files.

./decode.py --exp-dir exp/paper --avg 10 --use-averaged-model true --precision 2 1 --decoding-method 1best
./decode.py --exp-dir exp/paper --avg 10 --test-sets dev --decoding-method 1best --lm-scale 0.4,0.6,0.8   # choose
./decode.py --mini true --packed exp-mini/demo/pretrained-1bit.safetensors
./decode.py --packed exp/paper/pretrained-1bit.safetensors --wav call.sph                          # its first channel

The error rates that this prints compare words as they are written; score.py gives those of NIST's rules.
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
}
REAL = {
    "exp_dir": HERE / "exp/paper",
    "lang_dir": HERE / "data/lang_bpe_2000",
    "manifest_dir": HERE / "data/fbank",
}


def main() -> None:
    parser = make_parser(__doc__)
    add_mini_argument(parser)
    parser.add_argument("--test-sets", default="eval2000", help="dev, eval2000, rt02, rt03, by commas")
    add_decoding_flags(parser)
    parser.set_defaults(**(MINI if wants_mini() else REAL))
    args = parser.parse_args()
    names, config = args.test_sets.split(","), read_decoding_flags(args)
    with decoding_errors():
        if args.wav:
            return run_transcription(config, args.wav)
        run_decode(config, lambda: {name: load_cuts(config.manifest_dir, "swbd", name) for name in names})


if __name__ == "__main__":
    run_main(main)
