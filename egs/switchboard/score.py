#!/usr/bin/env python3
"""Score what decode.py wrote by NIST's rules (STM, GLM, sclite where it is installed), for each part of a test set.

./score.py --recogs exp/paper/1best/recogs-eval2000-....txt
./score.py --mini true --recogs exp-mini/demo/ctc-greedy-search/recogs-eval2000-....txt --scorer python
./score.py --stm data/rt03/stm --glm data/rt03/glm --cuts data/fbank/swbd_cuts_rt03.jsonl.gz --recogs FILE

The table's parts are those of the test set (eval2000: swbd, callhm; rt02: swbd1, swbd2, swbdcell; rt03: swbd, fsh).
Beside it the folder of results gets the hypothesis as CTM, both sides as the GLM left them, counts by segment, and
sclite's reports. sclite is in Debian's package sctk; LOWBIT_K2_SCTK may name the folder of another one.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.data.manifests import cuts_path, read_cuts
from lowbit_k2.errors import run_main
from lowbit_k2.recipe.flags import add_mini_argument, make_parser
from lowbit_k2.scoring.hub5 import SCORERS, format_score, score


def main() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = make_parser(__doc__)
    add_mini_argument(parser)
    parser.add_argument("--recogs", type=Path, required=True, help="recogs-*.txt of decode.py")
    parser.add_argument("--test-set", default="eval2000", help="where stm, glm and cuts are looked for")
    parser.add_argument("--stm", type=Path, help="reference; default: data/<test set>/stm (--mini: data-mini)")
    parser.add_argument("--glm", type=Path, help="its global mapping file; default: beside it")
    parser.add_argument("--cuts", type=Path, help="cut manifest of the test set; default: data/fbank/...")
    parser.add_argument("--output-dir", type=Path, help="default: score-<name> beside the recogs file")
    parser.add_argument("--scorer", choices=SCORERS, default="auto", help="auto: sclite where it is installed")
    args = parser.parse_args()
    data = HERE / ("data-mini" if args.mini else "data")
    cuts = read_cuts(args.cuts or cuts_path(data / "fbank", "swbd", args.test_set))
    stm = args.stm or data / args.test_set / "stm"
    glm = args.glm or stm.with_name("glm")
    output_dir = args.output_dir or args.recogs.with_name(f"score-{args.recogs.stem.removeprefix('recogs-')}")
    print(format_score(score(args.recogs, cuts, stm, glm, output_dir, args.scorer)))
    print(f"Details in {output_dir}")


if __name__ == "__main__":
    run_main(main)
