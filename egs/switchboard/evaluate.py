#!/usr/bin/env python3
"""Decode, pack, decode again from the packed files, and score by NIST's rules: one table of a model's precisions.

./evaluate.py --mini true --exp-dir exp-mini/demo --float-exp-dir exp-mini/float --precisions 2 1.5 1 --avg 3
./evaluate.py --exp-dir exp/paper --test-set rt03 --decoding-method 1best --lm-scale 0.6 --avg 10

Choose --lm-scale on dev.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE / "local")]
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from score_table import Rows, format_scores, write_scores

from lowbit_k2.asr.evaluation import evaluate
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.recipe.decoding_flags import add_decoding_flags, decoding_errors, read_decoding_flags
from lowbit_k2.recipe.flags import add_mini_argument, make_parser
from lowbit_k2.scoring.hub5 import NAMES, SCORERS, score


def main() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = make_parser(__doc__)
    add_mini_argument(parser)
    parser.add_argument("--float-exp-dir", type=Path, help="a float model of train.py --precisions 32: the first row")
    parser.add_argument("--data-dir", type=Path, help="what prepare.sh made (data, or with --mini data-mini)")
    parser.add_argument("--precisions", nargs="+", default=["2", "1.5", "1"])
    parser.add_argument("--test-set", default="eval2000")
    parser.add_argument("--scorer", choices=SCORERS, default="auto", help="auto: sclite where it is installed")
    parser.add_argument("--exp-dir", type=Path, required=True, help="the folder that train.py wrote")
    add_decoding_flags(parser, precisions=False)
    parser.set_defaults(decoding_method="ctc-greedy-search,1best", manifest_dir=None)
    parser.add_argument("--output", type=Path, help="also write the scores to this file, as JSON")
    args = parser.parse_args()
    data = args.data_dir or HERE / ("data-mini" if args.mini else "data")
    args.lang_dir = args.lang_dir or data / ("lang_char" if args.mini else "lang_bpe_2000")
    args.manifest_dir = args.manifest_dir or data / "fbank"
    config = read_decoding_flags(args)
    stm, glm = data / args.test_set / "stm", data / args.test_set / "glm"
    if not stm.is_file():
        raise UserError(f"{stm} does not exist: run stage 2 of prepare.sh with the discs of {args.test_set}")
    cuts = load_cuts(config.manifest_dir, "swbd", args.test_set)
    models = [(args.float_exp_dir, ["32"])] if args.float_exp_dir else []
    rows: Rows = []
    for exp_dir, precisions in [*models, (config.choice.exp_dir, args.precisions)]:
        chosen = replace(config, choice=replace(config.choice, exp_dir=exp_dir))
        with decoding_errors():
            evaluations = evaluate(chosen, precisions, args.test_set, lambda: cuts)
        for e in evaluations:
            files = {method: exp_dir / name for method, name in e.recogs.items()}
            folders = {m: f.with_name(f"score-{f.stem.removeprefix('recogs-')}") for m, f in files.items()}
            rows.append((e, {m: score(f, cuts, stm, glm, folders[m], args.scorer) for m, f in files.items()}))
    if args.output:
        write_scores(args.output, rows)
    print(f"\n{format_scores(rows)}")
    print(f"Scored by {NAMES[next(iter(rows[0][1].values())).scorer]}; details in score-* beside the recogs files.")


if __name__ == "__main__":
    run_main(main)
