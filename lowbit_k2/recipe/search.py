"""Search the width of each layer (PipeGumbel, arXiv 2206.11643): a TDNN-F's bottlenecks, a Conformer's feed-forward.

  python -m lowbit_k2.recipe.search --corpus an4 --manifest-dir data/fbank --lang-dir data/lang_phone \
    --objective lfmmi --model tdnnf-tiny --exp-dir exp/search --num-epochs 20 --eta 0.1
  ./train.py --objective lfmmi --model tdnnf-tiny --lang-dir data/lang_phone --exp-dir exp/found --precisions 32 \
    --architecture exp/search/logits/architecture.json

All flags of train.py hold for the supernet, whose weights are trained on 95% of the utterances; then its logits are, on
the other 5%, by --eta, --cost and --logits-*. Call it again to go on where it stopped. Another eta costs the logits
alone: --phase logits --eta 0.2 --logits-dir logits-0.2. See docs/search.md.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, fields

from lowbit_k2.asr.searching import (
    RESULT,
    SUPERNET,
    Search,
    SearchRunConfig,
    search_space,
    space_costs,
    train_logits,
    train_supernet,
)
from lowbit_k2.asr.training import RunConfig, TrainingConfig, start_run, usable_cuts
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.data.datamodule import AsrDataModule
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.losses.co_training import STOCHASTIC, split_names
from lowbit_k2.recipe.flags import add_flags, read_flags
from lowbit_k2.recipe.training_flags import read_training_flags, training_errors, training_parser
from lowbit_k2.search.config import SearchConfig
from lowbit_k2.search.report import describe_architecture, describe_space
from lowbit_k2.search.split import split_cuts

FOREIGN = ("start_epoch", "start_batch", "init_from", "freeze")  # fields of RunConfig that mean nothing here


@dataclass(frozen=True)
class CorpusConfig(Config):
    """The cuts in --manifest-dir."""

    corpus: str = option("an4", "as in the names of its manifests")
    train_splits: tuple[str, ...] = option(("train",), "for weights and logits", parse=split_names)
    valid_splits: tuple[str, ...] = option(("dev",), "to validate the supernet on", parse=split_names)
    lazy_cuts: bool = option(False, "leave training manifests on disk: for hundreds of hours")


CONFIGS: tuple[type[Config], ...] = (SearchConfig, SearchRunConfig, CorpusConfig)


def get_parser() -> argparse.ArgumentParser:
    parser = training_parser(__doc__, precisions="32", resume=True)
    add_flags(parser.add_argument_group("search"), *CONFIGS)
    return parser


def check(args: argparse.Namespace, config: TrainingConfig) -> None:
    """Refuse flags of train.py that a search has no use for.

    Raises:
      ConfigError, UserError: one of them is given.
    """
    for field in fields(RunConfig):
        if field.name in FOREIGN and getattr(config.run, field.name) != field.default:
            raise ConfigError(field.name, "is for train.py: a search starts with fresh weights, and goes on by itself")
    if args.architecture is not None:
        raise UserError("--architecture is for train.py: a search makes it")
    branches = config.co_training
    if len(branches.precisions) > 1 or STOCHASTIC in branches.precisions or branches.teacher:
        raise ConfigError("precisions", "of a search is one, without a teacher: 32, the default, or 4 for instance")


def run_search(training: TrainingConfig, config: SearchConfig, files: SearchRunConfig, corpus: CorpusConfig) -> None:
    """The phases that are asked for.

    Raises:
      UserError: bad input; nothing is written then.
    """
    search_space(training, config)  # before anything is read
    folder = training.data.manifest_dir
    train_cuts = load_cuts(folder, corpus.corpus, corpus.train_splits, lazy=corpus.lazy_cuts)
    valid_cuts = load_cuts(folder, corpus.corpus, corpus.valid_splits)
    with start_run(training) as run:
        if run.start is not None:
            raise ConfigError("exp_dir", f"{training.run.exp_dir} holds a training ({run.start.name}): give another")
        tokenizer = load_tokenizer(training.run.tokens)
        data = AsrDataModule(training.data, world_size=run.ranks.world_size, rank=run.ranks.rank)
        space = search_space(training, config, data.features.num_mel_bins)
        search = Search(training, config, files, run, tokenizer, data, space)
        # before they are dealt out: what is known of their features is known of all of them
        train_cuts, valid_cuts = usable_cuts(data, tokenizer, search.model_config, train_cuts, valid_cuts)
        most, rest = split_cuts(train_cuts, config.logits_share)
        logging.info("\n%s", describe_space(space, search.costs()))
        if files.phase in (SUPERNET, "all"):
            train_supernet(search, most, valid_cuts)
            run.ranks.sum_metrics({"written": 1.0}, run.device)  # all ranks read what the main one has written
        if files.phase != SUPERNET:
            found = train_logits(search, rest)
            if run.ranks.is_main:
                output = files.output or training.run.exp_dir / files.logits_dir / RESULT
                found.save(output)
                logging.info("%s:\n%s", output, describe_architecture(found))


def main() -> None:
    args = get_parser().parse_args()
    training = read_training_flags(args)
    with training_errors(*CONFIGS):
        check(args, training)
        config, files, corpus = (read_flags(cls, args) for cls in CONFIGS)
        if args.dry_run:
            space = search_space(training, config)
            model = training.model_config(training.run.vocab_size, 80)
            print(describe_space(space, space_costs(training, config, space, model)))
            return
        run_search(training, config, files, corpus)


if __name__ == "__main__":
    run_main(main)
