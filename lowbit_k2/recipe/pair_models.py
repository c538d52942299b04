"""Recognisers by language models: word errors and bytes of every pair of packed files (docs/language-models.md).

  python -m lowbit_k2.recipe.pair_models --recogniser 32=exp/float/32bit.safetensors 2=exp/low/2bit.safetensors \\
    --lm 32=exp/lm/float.safetensors 2=exp/lm/2bit.safetensors --corpus an4 --lang-dir data/lang_phone \\
    --decoding-method nbest --lm-scale 0.6,0.8 --rescore-lm-scale 0.1,0.2,0.4 --rescore-ngram-scale 0.5,1 \\
    --output results/pairs.json
  python -m lowbit_k2.recipe.pair_models --show results/pairs.json

Scales are chosen on --dev for each pair. The first recogniser with the first language model is what the others are
compared with. What has been decoded is not decoded again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lowbit_k2.asr.model_io import CheckpointChoice
from lowbit_k2.asr.pairs import NONE, Pair, evaluate_pairs, format_pairs, load_pairs
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import write_json
from lowbit_k2.recipe.flags import add_flags, errors_name_flags, make_parser, read_flags

SEARCHES = ("lang_dir", "lm_dir", "decoding_method", "lm_scale", "rescore_lm_scale", "rescore_ngram_scale")
DATA = ("manifest_dir", "max_duration", "num_threads")


def named_file(text: str) -> tuple[str, Path]:
    """`NAME=FILE`."""
    name, equals, path = text.partition("=")
    if not (name and equals and path) or "/" in name or name == NONE:
        raise argparse.ArgumentTypeError(f"'{text}' is no NAME=FILE")
    return name, Path(path)


def named_files(flag: str, pairs: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Raises: UserError: a name that two files have."""
    if len(dict(pairs)) != len(pairs):
        raise UserError(f"{flag} has two files of one name: name each once")
    return dict(pairs)


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--recogniser", type=named_file, nargs="+", metavar="NAME=FILE", help="packed; the first: float"
    )
    parser.add_argument("--lm", type=named_file, nargs="+", metavar="NAME=FILE", help="packed language models")
    parser.add_argument("--corpus", help="first part of the manifests' names")
    parser.add_argument("--dev", default="dev", help="the set that scales are chosen on")
    parser.add_argument("--test", default="test", help="the set that is counted")
    parser.add_argument("--exp-dir", type=Path, default=Path("exp/pairs"), help="hypotheses, a folder per pair")
    parser.add_argument("--output", type=Path, help="the pairs as JSON")
    parser.add_argument("--show", type=Path, help="print the table of such a file, and decode nothing")
    add_flags(parser, DecodeConfig, only=(*SEARCHES, *DATA))
    add_flags(parser, SearchConfig)
    return parser


def run(args: argparse.Namespace) -> list[Pair]:
    """Raises: UserError: a flag is missing, or as `evaluate_pairs`."""
    for flag in ("recogniser", "lm", "corpus"):
        if not getattr(args, flag):
            raise UserError(f"--{flag} is missing: see --help")
    config = read_flags(
        DecodeConfig, args, choice=CheckpointChoice(args.exp_dir), search=read_flags(SearchConfig, args), quiet=True
    )
    with errors_name_flags([(DecodeConfig, ""), (SearchConfig, "")]):
        return evaluate_pairs(
            config,
            named_files("--recogniser", args.recogniser),
            named_files("--lm", args.lm),
            args.dev,
            args.test,
            lambda name: load_cuts(config.manifest_dir, args.corpus, name),
            args.exp_dir,
        )


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%Y-%m-%d %H:%M:%S")
    args = get_parser().parse_args()
    pairs = load_pairs(args.show) if args.show else run(args)
    if args.output:
        write_json(args.output, [pair.to_dict() for pair in pairs])
    sys.stdout.write(format_pairs(pairs) + "\n")


if __name__ == "__main__":
    run_main(main)
