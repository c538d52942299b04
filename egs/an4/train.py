#!/usr/bin/env python3
"""Train a low-bit Conformer with CTC on CMU AN4.

./prepare.sh --an4-dir /path/to/an4
./train.py --exp-dir exp/cotrain --precisions 2,1,sp          # co-training, the method of arXiv 2505.21245
./train.py --exp-dir exp/float --precisions 32                # float baseline
./train.py --exp-dir exp/naive1 --precisions 1                # naive 1-bit training
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from lowbit_k2.launch import use_project_interpreter  # noqa: E402

use_project_interpreter()

from lowbit_k2.data.datamodule import add_data_arguments  # noqa: E402
from lowbit_k2.data.manifests import load_cuts  # noqa: E402
from lowbit_k2.errors import run_main  # noqa: E402
from lowbit_k2.recipe.flags import make_parser  # noqa: E402
from lowbit_k2.recipe.training import add_training_arguments, run_training  # noqa: E402

DEFAULTS = {
    "lang_dir": HERE / "data/lang_char",
    "manifest_dir": HERE / "data/fbank",
    "exp_dir": HERE / "exp/tiny",
}


def main() -> None:
    parser = make_parser(__doc__)
    add_training_arguments(parser)
    add_data_arguments(parser)
    parser.set_defaults(**DEFAULTS)
    args = parser.parse_args()
    train_cuts = load_cuts(args.manifest_dir, "an4", "train")
    valid_cuts = load_cuts(args.manifest_dir, "an4", "dev")
    run_training(args, train_cuts, valid_cuts)


if __name__ == "__main__":
    run_main(main)
