#!/usr/bin/env python3
"""Decode, pack, and decode again from the packed files: one table of all precisions of a trained model.

./evaluate.py --mini true --exp-dir exp-mini/demo --precisions 2 1.5 1 --avg 3
./evaluate.py --exp-dir exp/paper --decoding-method nbest --num-paths 50 --max-duration 100

Flags that are not listed here are decode.py's.
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
from lowbit_k2.recipe.flags import add_mini_argument, make_parser


def main() -> None:
    parser = make_parser(__doc__)
    add_mini_argument(parser)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("--manifest-dir", type=Path, help="default: data/fbank, or data-mini/fbank")
    parser.add_argument("--lang-dir", type=Path, help="default: lang_bpe_500, or with --mini lang_char, beside it")
    parser.add_argument("--precisions", nargs="+", default=["2", "1.5", "1"])
    parser.add_argument("--test-set", default="test-clean")
    parser.add_argument("--avg", type=int, default=1)
    parser.add_argument("--use-averaged-model", default="false")
    parser.add_argument("--decoding-method", default="ctc-greedy-search,1best")
    args, further = parser.parse_known_args()
    manifest_dir = args.manifest_dir or HERE / ("data-mini" if args.mini else "data") / "fbank"
    lang_dir = args.lang_dir or manifest_dir.parent / ("lang_char" if args.mini else "lang_bpe_500")
    evaluations = evaluate(
        args.exp_dir,
        args.precisions,
        args.test_set,
        lambda: load_cuts(manifest_dir, "librispeech", args.test_set),
        decode_flags=[
            *("--manifest-dir", str(manifest_dir), "--lang-dir", str(lang_dir)),
            *("--decoding-method", args.decoding_method, *further),
        ],
        average_flags=["--avg", str(args.avg), "--use-averaged-model", args.use_averaged_model],
    )
    print()
    print(format_table(evaluations))


if __name__ == "__main__":
    run_main(main)
