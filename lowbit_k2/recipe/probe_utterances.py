"""Classify utterances by frozen hidden states, as SUPERB does: keywords (their text), or speakers (docs/hubert.md).

  python -m lowbit_k2.recipe.probe_utterances --manifest-dir data/states-1bit --corpus keywords --splits all \
    --num-states 6 --label text
  python -m lowbit_k2.recipe.probe_utterances --manifest-dir data/states-1bit --corpus an4 --splits train \
    --num-states 6 --label speaker

Trains on the splits, and tests on `--test-splits`, or else on every fifth utterance of each class, which is then left
out of training. Prints the error rate and the weights of the layers; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lowbit_k2.asr.representations import split_words
from lowbit_k2.asr.utterance_probe import ProbeConfig, held_out, probe
from lowbit_k2.core.config import Config, option
from lowbit_k2.data.features import read_feature_config
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import run_main
from lowbit_k2.recipe.flags import add_flags, errors_name_flags, make_parser, read_flags


@dataclass(frozen=True)
class ProbeDataConfig(Config):
    """What extract_states wrote."""

    manifest_dir: Path = option(Path("data/states"), "cut manifests and states")
    corpus: str = option("librispeech", "first part of the manifests' names")
    splits: tuple[str, ...] = option(("train",), "splits to train on, by spaces", parse=split_words)
    test_splits: tuple[str, ...] = option((), "splits to test on", parse=split_words)
    num_threads: int = option(0, "CPU threads; 0 leaves PyTorch's choice", low=0, high=4096)


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = make_parser(__doc__)
    add_flags(parser, ProbeDataConfig, ProbeConfig)
    return parser


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%Y-%m-%d %H:%M:%S")
    args = get_parser().parse_args()
    data, config = read_flags(ProbeDataConfig, args), read_flags(ProbeConfig, args)
    if data.num_threads:
        torch.set_num_threads(data.num_threads)
    features = read_feature_config(data.manifest_dir, "none")
    train = load_cuts(data.manifest_dir, data.corpus, data.splits)
    if data.test_splits:
        test = load_cuts(data.manifest_dir, data.corpus, data.test_splits)
    else:
        train, test = held_out(train, config.label, config.hold_out)
    with errors_name_flags([(ProbeConfig, "")]):
        found = probe(train, test, features, config)
    print(
        f"{100 * (1 - found.accuracy):.2f}% errors [ {found.tested - found.right} / {found.tested} ], {found.classes} "
        f"classes, {found.trained} utterances to train on"
    )
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    run_main(main)
