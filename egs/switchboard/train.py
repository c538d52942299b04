#!/usr/bin/env python3
"""Train a low-bit Conformer on Switchboard, or on the embedded conversations (--mini true).

./prepare.sh --mini true && ./train.py --mini true            # about 1 M parameters, minutes on two CPU cores
./prepare.sh --swbd-dir ... && ./train.py --use-fp16 true     # 300 h, the paper's encoder, on a GPU
./train.py --precisions 32 --exp-dir exp/float                # float baseline
./train.py --objective ctc-rnnt --exp-dir exp/rnnt            # pruned transducer with a CTC head
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
from lowbit_k2.recipe.flags import add_mini_argument, wants_mini

MINI = {  # an hour of synthetic conversations
    "exp_dir": HERE / "exp-mini/demo",
    "lang_dir": HERE / "data-mini/lang_char",
    "manifest_dir": HERE / "data-mini/fbank",
    "model": "demo",
    "max_duration": 20.0,
    "cache_features": True,
    "num_epochs": 10,
    "lr_factor": 0.36,
    "warm_step": 300,
    "dropout": 0.05,
}
REAL = {  # arXiv 2505.21245: 12 blocks, 256/2048, 4 heads, 2000 pieces, Noam factor 5 with 25k updates of warm-up
    "exp_dir": HERE / "exp/paper",
    "lang_dir": HERE / "data/lang_bpe_2000",
    "manifest_dir": HERE / "data/fbank",
    "model": "paper",
    "num_epochs": 100,
    "lr_factor": 5.0,
    "warm_step": 25000,
    "average_period": 100,
}


def make_parser() -> argparse.ArgumentParser:
    parser = training_parser(__doc__, **(MINI if wants_mini() else REAL))
    add_mini_argument(parser)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.dry_run:
        return dry_run(args)
    train_cuts = load_cuts(args.manifest_dir, "swbd", "train", lazy=not args.mini)
    valid_cuts = load_cuts(args.manifest_dir, "swbd", "dev")
    run_training(args, train_cuts, valid_cuts)


if __name__ == "__main__":
    run_main(main)
