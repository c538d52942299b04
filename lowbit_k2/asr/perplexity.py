"""Perplexity of a text, and how it is counted.

    per word  exp(-log P / (words + sentences))        per unit  exp(-log P / (units + sentences))

P is that of all units and of the end of each sentence, as SRILM's `ppl` has it with `-unk`: a word that the model does
not know counts at the probability of `<unk>`, which is that of all such words together. Without it (SRILM's default)
these words are left out of both sums. Perplexities per word of models with other vocabularies do not compare, nor do
those per unit of models with other units.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from lowbit_k2.asr.language_model import TrainedLm
from lowbit_k2.data.lm_text import TextBatches, TokenText
from lowbit_k2.data.text_config import TextConfig
from lowbit_k2.errors import UserError
from lowbit_k2.models.masking import valid_frames
from lowbit_k2.progress import progress_bar


def per_word(loss: float, text: TokenText) -> float:
    """Perplexity of `loss` nats over a text, by words and ends of sentences."""
    return exponential(loss / (text.words + text.sentences))


def per_token(loss: float, text: TokenText) -> float:
    """The same by units and ends of sentences."""
    return exponential(loss / text.targets)


def exponential(value: float) -> float:
    """exp, infinite where it is too large for a float."""
    return math.exp(value) if value < 700 else math.inf


@dataclass(frozen=True)
class Perplexity:
    """Of a text.

    Attributes:
      words, sentences, units: units with the ends of sentences.
      unknown: how many units are `<unk>`.
      per_word_known: by the words that are known; None where units spell words, of which none is left out then.
      log_prob: natural logarithm.
    """

    words: int
    sentences: int
    units: int
    unknown: int
    log_prob: float
    per_word: float
    per_unit: float
    per_word_known: float | None
    seconds: float

    def __str__(self) -> str:
        share = f"{self.unknown:,} of {self.words:,} words ({self.unknown / self.words:.1%})"
        if self.per_word_known is None:
            unknown = f"{self.unknown:,} units are <unk>, which stands for letters that no unit has"
        else:
            unknown = f"{share} count at the probability of <unk>; without them {self.per_word_known:.2f}"
        return (
            f"{self.words:,} words, {self.sentences:,} sentences, {self.units:,} units with their ends\n"
            f"perplexity per word {self.per_word:.2f}, per unit {self.per_unit:.2f}\n"
            f"<unk>: {unknown}\n"
            f"{1000 * self.seconds / self.words:.3f} ms per word"
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


@torch.no_grad()
def row_log_probs(lm: TrainedLm, text: TokenText, config: TextConfig) -> tuple[np.ndarray, np.ndarray]:
    """log P of each row and its end, and of it the part of its `<unk>`: (rows,) float64 each.

    Rows are in the order of the text: its sentences, unless `config.pack_length` joins them.
    """
    batches = TextBatches(text, config)
    total, of_unknown = np.zeros((2, len(batches.lens)))
    with progress_bar(total=text.targets, desc="perplexity", unit="unit", leave=False) as bar:
        for rows in batches.valid_order():
            batch = batches.make_batch(rows).to(lm.device)
            scores = lm.model.target_log_probs(batch.inputs, batch.targets).double()  # (N, T)
            scores = scores.masked_fill(~valid_frames(batch.input_lens, scores.size(1)), 0.0)
            total[rows] = scores.sum(dim=1).cpu()
            of_unknown[rows] = scores.masked_fill(batch.targets != text.unknown, 0.0).sum(dim=1).cpu()
            bar.update(int(batch.input_lens.sum()))
    return total, of_unknown


def perplexity(lm: TrainedLm, text: TokenText, config: TextConfig) -> Perplexity:
    """Score a text, each row by itself; `config` says what a row is."""
    start = time.perf_counter()
    total, of_unknown = (float(scores.sum()) for scores in row_log_probs(lm, text, config))
    seconds = time.perf_counter() - start
    unknown = int((text.tokens == text.unknown).sum())
    known = text.words + text.sentences - unknown
    by_words = text.targets == text.words + text.sentences
    return Perplexity(
        text.words,
        text.sentences,
        text.targets,
        unknown,
        total,
        per_word(-total, text),
        per_token(-total, text),
        exponential((of_unknown - total) / known) if by_words else None,
        seconds,
    )


def print_perplexity(lm: TrainedLm, files: Sequence[Path], config: TextConfig, as_json: bool = False) -> None:
    """Read a text of several files in the model's units, score it, and print what comes out.

    Raises:
      UserError: the text cannot be read, is empty, has a line that is too long, or all of its words are unknown.
    """
    text = TokenText.read(files, lm.tokenizer, config)
    check_vocabulary(text, lm.tokenizer.vocab_size, ", ".join(map(str, files)))
    found = perplexity(lm, text, config)
    print(found.to_json() if as_json else f"{', '.join(map(str, files))}: {found}")


def check_vocabulary(text: TokenText, vocab_size: int, name: str) -> None:
    """Raise UserError where the model knows no word of a text."""
    if int((text.tokens == text.unknown).sum()) >= text.words:  # pieces: spelled with an unknown letter each
        raise UserError(
            f"{name}: the model knows none of its words, of {vocab_size:,} units: are letter cases and languages equal "
            "(--normalize-text)?"
        )
