#!/usr/bin/env python3
"""Decode, pack, and decode again from the packed files: one table of all precisions of a trained model.

./evaluate.py --mini true --exp-dir exp-mini/demo --precisions 2 1.5 1 --avg 3
./evaluate.py --exp-dir exp/paper --decoding-method nbest --num-paths 50 --max-duration 100
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.asr.evaluation import evaluate, format_table
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import run_main
from lowbit_k2.recipe.decoding_flags import add_decoding_flags, decoding_errors, read_decoding_flags
from lowbit_k2.recipe.flags import add_mini_argument, make_parser, wants_mini


def main() -> None:
    parser = make_parser(__doc__)
    add_mini_argument(parser)
    parser.add_argument("--precisions", nargs="+", default=["2", "1.5", "1"])
    parser.add_argument("--test-set", default="test-clean")
    parser.add_argument("--exp-dir", type=Path, required=True, help="the folder that train.py wrote")
    add_decoding_flags(parser, precisions=False)
    data = HERE / ("data-mini" if wants_mini() else "data")
    parser.set_defaults(manifest_dir=data / "fbank", decoding_method="ctc-greedy-search,1best")
    args = parser.parse_args()
    units = "lang_char" if args.mini else "lang_bpe_500"
    args.lang_dir = args.lang_dir or args.manifest_dir.parent / units
    config = read_decoding_flags(args)
    with decoding_errors():
        evaluations = evaluate(
            config,
            args.precisions,
            args.test_set,
            lambda: load_cuts(config.manifest_dir, "librispeech", args.test_set),
        )
    print()
    print(format_table(evaluations))


if __name__ == "__main__":
    run_main(main)
