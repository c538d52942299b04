"""Lattice-free MMI (Povey et al. 2016) on the CTC topology: the transcript against all that could have been said.

    loss = log Z_den - log Z_num

Z_num adds up all paths of the transcript's units, with every pronunciation of its words; Z_den those of all sequences
of units. Both are weighed by the same n-gram of units, so that the first is a part of the second and the loss is never
negative; the leak of the denominator's HMM makes it larger. In a warm-up the denominator's weight rises from 0: with
log-probabilities that is CTC, with pronunciation variants and an n-gram, at first.

The n-gram is an ARPA file over the units of the lang directory:

    python -m lowbit_k2.recipe.make_lm --units data/lang_phone --order 2 --transcript data/train.txt \\
      --arpa data/lang_phone/units_2gram.arpa
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from lowbit_k2.core.config import Config, option
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import BackoffModel, read_arpa
from lowbit_k2.graphs.unit_graphs import FrameGraph, UnitGraph, compose, expand, ngram_graph, transcript_graph
from lowbit_k2.losses.distillation import Posterior
from lowbit_k2.losses.forward_backward import GraphBatch, StateGraph, log_total, log_totals
from lowbit_k2.losses.output import PassOutput, TrainingBatch

UNIT_LM = "units_2gram.arpa"
TOPOLOGY = "ctc"
REMEMBERED = 50_000  # transcripts whose graphs are kept


class Units(Protocol):
    """What is needed of a tokenizer."""

    def pronunciations(self, word: str) -> list[list[int]]: ...

    def pieces(self) -> list[str]: ...


@dataclass(frozen=True)
class LfMmiConfig(Config):
    """The denominator, and how it comes in."""

    unit_lm: Path | None = option(
        None, f"n-gram of the units, by make_lm --units; default: LANG_DIR/{UNIT_LM}", flag="lfmmi-unit-lm"
    )
    max_arcs: int = option(
        20_000, "of the graph of all sequences; longer histories are cut to that", flag="lfmmi-max-arcs", low=1
    )
    leak: float = option(
        0.1, "leaky HMM: weight of jumps to a new beginning in the denominator", flag="lfmmi-leak", low=0, high=1
    )
    warm_step: int = option(500, "updates in which the denominator comes in", flag="lfmmi-warm-step", low=0)

    def denominator_weight(self, update: int) -> float:
        """At an update, the first being 1."""
        return min(1.0, update / self.warm_step) if self.warm_step else 1.0


class LfMmiCriterion:
    """One pass of a CTC model, trained by LF-MMI; targets are graphs, by `encode`."""

    def __init__(self, config: LfMmiConfig) -> None:
        self.config = config
        self.language: UnitGraph | None = None
        self.denominator: StateGraph | None = None

    def load_units(self, units: Units, lang_dir: Path) -> None:
        """Read the n-gram and make the denominator.

        Raises:
          UserError: there is no n-gram, or it is one of other units.
        """
        path = self.config.unit_lm or lang_dir / UNIT_LM
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: make it with python -m lowbit_k2.recipe.make_lm --units {lang_dir} --order 2 "
                f"--transcript TEXT --arpa {path}"
            )
        self.begin(numbered(read_arpa(path), units.pieces(), path), units)

    def begin(self, model: BackoffModel, units: Units) -> None:
        """
        Args:
          model: over the units' numbers, as text.
        """
        self.language = ngram_graph(model, self.config.max_arcs)
        self.denominator = StateGraph.of(expand(self.language, TOPOLOGY)).leaky(self.config.leak)

        @lru_cache(maxsize=REMEMBERED)
        def numerator(text: str) -> FrameGraph:
            transcript = transcript_graph([units.pronunciations(word) for word in text.split()], TOPOLOGY)
            return expand(compose(transcript, self.language), TOPOLOGY)

        self.encode = numerator

    def __call__(self, model: nn.Module, batch: TrainingBatch, update: int = 0, shared: None = None) -> PassOutput:
        """inputs (N, T, F), input_lens (N,), N graphs; utterances too short for their transcripts do not count."""
        assert self.denominator is not None, "load_units first"
        log_probs, lens = model(batch.inputs, batch.input_lens)
        with torch.autocast(log_probs.device.type, enabled=False):
            numerators = log_totals(log_probs.float(), lens, GraphBatch.of(batch.targets))  # (N,)
            denominators = log_total(log_probs.float(), lens, self.denominator)  # (N,)
        possible = torch.isfinite(numerators.detach())
        # infinity times 0 is no number: what cannot be is taken out before it is weighed
        spoken = torch.where(possible, numerators, torch.zeros_like(numerators)).sum()
        everything = torch.where(possible, denominators, torch.zeros_like(denominators)).sum()
        loss = (self.config.denominator_weight(update) * everything - spoken).float()
        parts = {"numerator": -spoken.detach(), "denominator": everything.detach()}
        parts["impossible"] = (~possible).sum().double()
        return PassOutput(loss, int(lens.sum()), {"ctc": Posterior.of_frames(log_probs, lens)}, parts)


def numbered(model: BackoffModel, pieces: Sequence[str], path: Path) -> BackoffModel:
    """The n-gram with units as numbers in the place of symbols.

    Raises:
      UserError: a symbol that is no unit.
    """
    numbers = {piece: str(i) for i, piece in enumerate(pieces)}
    foreign = [word for word in model.vocabulary if word != "</s>" and word not in numbers]
    if foreign:
        raise UserError(f"{path} has {foreign[0]}, which is none of the model's units: make it of the same folder")

    def renamed(ngram: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(numbers.get(word, word) for word in ngram)

    return replace(
        model,
        probabilities=tuple({renamed(n): p for n, p in table.items()} for table in model.probabilities),
        backoffs={renamed(n): p for n, p in model.backoffs.items()},
        vocabulary=renamed(model.vocabulary),
    )
