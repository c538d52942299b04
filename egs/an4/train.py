#!/usr/bin/env python3
"""Train a low-bit Conformer with CTC on CMU AN4.

./prepare.sh --an4-dir /path/to/an4
./train.py --exp-dir exp/cotrain --precisions 2,1,sp          # co-training, the method of arXiv 2505.21245
./train.py --exp-dir exp/float --precisions 32                # float baseline
./train.py --exp-dir exp/naive1 --precisions 1                # naive 1-bit training
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.asr.dry_run import dry_run
from lowbit_k2.asr.training import run_training, training_parser
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import run_main


def make_parser() -> argparse.ArgumentParser:
    """The flags with this recipe's defaults."""
    return training_parser(
        __doc__,
        exp_dir=HERE / "exp/tiny",
        lang_dir=HERE / "data/lang_char",
        manifest_dir=HERE / "data/fbank",
        model="tiny",
        dropout=0.05,
        max_duration=30.0,
        cache_features=True,
        spec_aug_max_freq_width=18,
        spec_aug_max_time_fraction=0.15,
        num_epochs=20,
        lr_factor=0.5,
        warm_step=400,
    )


def main() -> None:
    args = make_parser().parse_args()
    if args.dry_run:
        return dry_run(args)
    train_cuts = load_cuts(args.manifest_dir, "an4", "train")
    valid_cuts = load_cuts(args.manifest_dir, "an4", "dev")
    run_training(args, train_cuts, valid_cuts)


if __name__ == "__main__":
    run_main(main)
