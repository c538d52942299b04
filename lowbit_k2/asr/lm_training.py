"""Settings and set-up of the training of a language model: what train_lm.py has besides what all trainings share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lowbit_k2.asr.perplexity import per_token, per_word
from lowbit_k2.asr.training import RunConfig
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.data.lm_text import TextBatches, TokenText, count_words, special_units
from lowbit_k2.data.text_config import TextConfig, split_paths
from lowbit_k2.data.tokenizer import Tokenizer, WordTokenizer, load_tokenizer
from lowbit_k2.train.distributed import DistributedContext

WORDS, PIECES = UNITS = ("words", "pieces")


@dataclass(frozen=True)
class LmDataConfig(Config):
    """Which text, in which units."""

    train_text: tuple[Path, ...] = option(
        (), "text to learn, plain or gzip; several files by commas", parse=split_paths
    )
    valid_text: tuple[Path, ...] = option((), "text that perplexity is told of, and not learnt", parse=split_paths)
    text: TextConfig = option(TextConfig, flag="")
    units: str = option(
        WORDS, "words: those of --train-text; pieces: BPE or characters of --lang-dir or --bpe-model", choices=UNITS
    )
    min_count: int = option(2, "words that occur less often become <unk>", low=1)
    max_words: int = option(0, "the most frequent words that are kept; 0: all", low=0, high=1_000_000)
    seed: int = option(42, flag="")

    def check(self) -> None:
        for name in ("train_text", "valid_text"):
            if not getattr(self, name):
                raise ConfigError(name, "is needed: a text file, one sentence per line")


@dataclass(frozen=True)
class LmText:
    """Text for training and validation, as batches."""

    train: TextBatches
    valid: TextBatches


def load_units(data: LmDataConfig, run: RunConfig) -> Tokenizer:
    """The words of the training text, or the pieces of a lang directory.

    Raises:
      UserError: a file cannot be read, there are no words, or the pieces are phones.
    """
    if data.units == PIECES:
        tokenizer = load_tokenizer(run.tokens)
        special_units(tokenizer)
        return tokenizer
    return WordTokenizer.from_counts(count_words(data.train_text, data.text), data.min_count, data.max_words)


def load_text(data: LmDataConfig, tokenizer: Tokenizer, ranks: DistributedContext) -> LmText:
    """Both texts in these units.

    Raises:
      UserError: one cannot be read, is empty, or has a line that is too long.
    """
    train = TokenText.read(data.train_text, tokenizer, data.text)
    valid = TokenText.read(data.valid_text, tokenizer, data.text)
    for name, text in (("training", train), ("validation", valid)):
        unknown = int((text.tokens == text.unknown).sum())
        logging.info(
            "%s text: %s words in %s lines, %s units to tell, %s (%.1f%%) of them <unk>; %d different units",
            *(name, f"{text.words:,}", f"{text.sentences:,}", f"{text.targets:,}", f"{unknown:,}"),
            *(100 * unknown / text.targets, tokenizer.vocab_size),
        )
    shares = (data.seed, ranks.world_size, ranks.rank)
    # validation is by lines, as rescoring is, whatever training joins
    return LmText(TextBatches(train, data.text, *shares), TextBatches(valid, replace(data.text, pack_length=0)))


def log_perplexity(valid: Mapping[str, float], text: TokenText) -> None:
    """Say what the losses of a validation are as perplexities; nothing on ranks that did not validate."""
    for name, loss in valid.items():
        if name != "loss":
            total = loss * text.targets
            logging.info(
                "valid perplexity at %s: %.2f per word, %.2f per unit, sentence ends told like words",
                *(name.removeprefix("loss_"), per_word(total, text), per_token(total, text)),
            )
