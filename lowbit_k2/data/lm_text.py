"""Text for language models: lines of files as units, in rows, in batches.

A row reads `<sos/eos> w1 .. wn` and tells `w1 .. wn <sos/eos>`: a line is a sentence, whose end is told like a word. It
knows nothing of other lines, unless lines that follow one another are joined (`pack_length`); then `<sos/eos>` stands
between them, and each sees those before it in its row. The order of an epoch is a function of (seed, epoch) alone.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lowbit_k2.data.batch import Batch
from lowbit_k2.data.datamodule import epoch_seed
from lowbit_k2.data.dealing import deal
from lowbit_k2.data.text import normalizer
from lowbit_k2.data.text_config import TextConfig
from lowbit_k2.data.tokenizer import BOUNDARY, UNKNOWN, Tokenizer
from lowbit_k2.errors import UserError
from lowbit_k2.progress import progress_bar
from lowbit_k2.textfile import numbered_lines

POOL = 50  # batches whose rows are sorted by length together
MISSING = "give a text file, one sentence per line"


def text_lines(paths: Sequence[Path], config: TextConfig) -> Iterator[tuple[str, str]]:
    """("FILE line N", words separated by single spaces) of every line that has words.

    Raises:
      UserError: a file cannot be read, or a line has more words than `max_length` allows units.
    """
    normalize = normalizer(config.normalize_text)
    for path in paths:
        for number, line in progress_bar(numbered_lines(path, MISSING), path.name, unit="line", leave=False):
            text = normalize(line.partition(" ")[2] if config.kaldi_text else line)
            words = text.count(" ") + 1
            if words > config.max_length:
                raise UserError(
                    f"{path} line {number} has {words} words, over --max-length {config.max_length}: put each sentence "
                    "on a line of its own"
                )
            if text:
                yield f"{path} line {number}", text


def count_words(paths: Sequence[Path], config: TextConfig) -> Counter[str]:
    """How often each word occurs."""
    counts: Counter[str] = Counter()
    for _, text in text_lines(paths, config):
        counts.update(text.split())
    return counts


@dataclass(frozen=True, eq=False)
class TokenText:
    """A text as units.

    Attributes:
      tokens: int32, `<sos/eos>` before each sentence and behind the last.
      starts: (sentences + 1,) int64, where these stand.
      words: in all sentences.
      boundary, unknown: ids of `<sos/eos>` and `<unk>`.
    """

    tokens: np.ndarray
    starts: np.ndarray
    words: int
    boundary: int
    unknown: int

    @property
    def sentences(self) -> int:
        return len(self.starts) - 1

    @property
    def targets(self) -> int:
        """Units that are told, ends of sentences included."""
        return len(self.tokens) - 1

    @classmethod
    def of_sentences(cls, sentences: Iterable[Sequence[int]], words: int, boundary: int, unknown: int) -> TokenText:
        """From the units of each sentence."""
        tokens, starts = array("i", [boundary]), array("q", [0])
        for ids in sentences:
            tokens.extend(ids)
            starts.append(len(tokens))
            tokens.append(boundary)
        return cls(np.frombuffer(tokens, np.int32), np.frombuffer(starts, np.int64), words, boundary, unknown)

    @classmethod
    def read(cls, paths: Sequence[Path], tokenizer: Tokenizer, config: TextConfig) -> TokenText:
        """The units of files; of Kaldi's text the ids are left out.

        Raises:
          UserError: a file cannot be read or has no words, a line is too long, or the units are phones.
        """
        boundary, unknown = special_units(tokenizer)
        words = 0

        def sentences() -> Iterator[list[int]]:
            nonlocal words
            for place, text in text_lines(paths, config):
                ids = tokenizer.encode(text)
                if len(ids) > config.max_length:
                    raise UserError(
                        f"{place} has {len(ids)} units, over --max-length {config.max_length}: put each sentence on a "
                        "line of its own"
                    )
                words += text.count(" ") + 1
                yield ids

        found = cls.of_sentences(sentences(), 0, boundary, unknown)
        if not words:
            what = "words behind its ids" if config.kaldi_text else "words"
            raise UserError(f"{', '.join(map(str, paths))}: no line has {what}: give a text, one sentence per line")
        return cls(found.tokens, found.starts, words, boundary, unknown)


def special_units(tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids of `<sos/eos>` and `<unk>`.

    Raises:
      UserError: the units have no such, or do not spell words.
    """
    pieces = tokenizer.pieces()
    if not tokenizer.spells_words or not {BOUNDARY, UNKNOWN} <= set(pieces):
        raise UserError(
            f"a language model needs words or pieces with {BOUNDARY} and {UNKNOWN}, as train_bpe makes them"
        )
    return pieces.index(BOUNDARY), pieces.index(UNKNOWN)


class TextBatches:
    """Batches of a text: shuffled for training, or all in a fixed order."""

    def __init__(self, text: TokenText, config: TextConfig, seed: int = 42, world_size: int = 1, rank: int = 0) -> None:
        """
        Args:
          world_size, rank: in distributed training, the rank gets every world_size-th batch, see `deal`.
        """
        self.text, self.config, self.seed = text, config, seed
        self.world_size, self.rank = world_size, rank
        firsts = _firsts(np.diff(text.starts), config.pack_length)
        self.rows = text.starts[[*firsts, text.sentences]]  # where rows begin, and the end
        self.lens = np.diff(self.rows)

    def train_batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch, counted from 1, behind the first `skip` of all ranks."""
        return map(self.make_batch, deal(self.order(epoch)[skip:], self.rank, self.world_size))

    def num_train_batches(self, epoch: int) -> int:
        """Of all ranks together."""
        return len(self.order(epoch))

    def valid_batches(self) -> Iterator[Batch]:
        """All rows once, long ones first."""
        return map(self.make_batch, self.valid_order())

    def valid_order(self) -> list[np.ndarray]:
        """The rows of each of these batches."""
        return self._cut(np.argsort(-self.lens, kind="stable"))

    def largest_batches(self) -> dict[str, Batch]:
        """The batches of an epoch that take most memory, by what makes them large."""
        batches = self.order(1)
        chosen = {
            "longest row": max(batches, key=lambda rows: self.lens[rows].max()),
            "most units": max(batches, key=lambda rows: self.lens[rows].max() * len(rows)),
        }
        return {reason: self.make_batch(rows) for reason, rows in chosen.items()}

    def order(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch: shuffled, in pools sorted by length, and the batches shuffled."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        shuffled = torch.randperm(len(self.lens), generator=generator).numpy()
        pools = max(1, int(self.lens.sum()) // (POOL * self.config.batch_tokens))
        batches = [
            batch
            for pool in np.array_split(shuffled, min(pools, len(shuffled)))
            for batch in self._cut(pool[np.argsort(-self.lens[pool], kind="stable")])
        ]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def make_batch(self, rows: Sequence[int]) -> Batch:
        """Rows side by side: inputs and targets (N, T), padded with `<sos/eos>`."""
        lens = torch.as_tensor(self.lens[np.asarray(rows)])
        padded = np.full((2, len(rows), int(lens.max())), self.text.boundary, dtype=np.int64)  # inputs and targets
        for place, row in enumerate(rows):
            start, end = self.rows[row], self.rows[row + 1]
            padded[0, place, : end - start] = self.text.tokens[start:end]
            padded[1, place, : end - start] = self.text.tokens[start + 1 : end + 1]
        inputs, targets = torch.from_numpy(padded)
        return Batch(inputs, lens, [""] * len(rows), [f"row {row}" for row in rows], targets)

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows in this order, as many to a batch as `batch_tokens` allows, one at least."""
        ends, first, longest = [], 0, 0
        for place, length in enumerate(self.lens[rows].tolist()):
            longest = max(longest, length)
            if place > first and longest * (place + 1 - first) > self.config.batch_tokens:
                ends.append(place)
                first, longest = place, length
        return np.split(rows, ends)


def _firsts(lens: np.ndarray, pack_length: int) -> list[int]:
    """The first sentence of each row; `lens` with the boundary of each."""
    if not pack_length:
        return list(range(len(lens)))
    firsts, filled = [0], 0
    for number, length in enumerate(lens.tolist()):
        if filled and filled + length > pack_length:
            firsts.append(number)
            filled = 0
        filled += length
    return firsts
