#!/usr/bin/env python3
"""Train a low-bit Conformer with CTC on LibriSpeech, or on the embedded corpus (--mini true).

./prepare.sh --mini true && ./train.py --mini true            # about 1 M parameters, minutes on two CPU cores
./prepare.sh && ./train.py --model paper --use-fp16 true      # 960 h, the paper's encoder, on a GPU
./train.py --full-libri false --model small                   # train-clean-100
./train.py --precisions 32 --exp-dir exp/float                # float baseline
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
from lowbit_k2.data.flags import str2bool
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import run_main
from lowbit_k2.recipe.flags import add_mini_argument, wants_mini

DEMO = {  # the embedded corpus: an hour of synthetic speech
    "exp_dir": HERE / "exp-mini/demo",
    "lang_dir": HERE / "data-mini/lang_char",
    "manifest_dir": HERE / "data-mini/fbank",
    "model": "demo",
    "max_duration": 20.0,
    "cache_features": True,
    "num_epochs": 10,
    "lr_factor": 0.36,  # peak rate 2.1e-3; 1-bit weights learn much slower at twice that (seen on AN4)
    "warm_step": 300,
    "dropout": 0.05,
}
REAL = {
    "exp_dir": HERE / "exp/paper",
    "lang_dir": HERE / "data/lang_bpe_500",
    "manifest_dir": HERE / "data/fbank",
    "model": "paper",
    "num_epochs": 30,
    "lr_factor": 5.0,
    "warm_step": 25000,
    "average_period": 100,
    "enable_musan": any((HERE / "data/fbank").glob("musan_cuts*")),  # where prepare.sh made it
}


def add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    add_mini_argument(parser)
    parser.add_argument("--full-libri", type=str2bool, default=True, help="960 h; false: train-clean-100")
    parser.add_argument("--mini-libri", type=str2bool, default=False, help="Mini LibriSpeech: train-clean-5")


def splits(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Names of the training and of the validation splits."""
    if args.mini_libri:
        return ["train-clean-5"], ["dev-clean-2"]
    if args.mini or not args.full_libri:
        return ["train-clean-100"], ["dev-clean"]
    return ["train-clean-100", "train-clean-360", "train-other-500"], ["dev-clean", "dev-other"]


def main() -> None:
    parser = training_parser(__doc__, **(DEMO if wants_mini() else REAL))
    add_corpus_arguments(parser)
    args = parser.parse_args()
    if args.dry_run:
        return dry_run(args)
    train, valid = splits(args)
    lazy = not args.mini
    train_cuts = load_cuts(args.manifest_dir, "librispeech", train, lazy=lazy)
    valid_cuts = load_cuts(args.manifest_dir, "librispeech", valid)
    run_training(args, train_cuts, valid_cuts)


if __name__ == "__main__":
    run_main(main)
