"""Lattice-free MMI (Povey et al. 2016): the transcript against all that could have been said.

    loss = log Z_den - log Z_num

Z_num adds up all paths of the transcript's units, with every pronunciation of its words; Z_den those of all sequences
of units. Both are weighed by the same n-gram of units, so that the first is a part of the second and the loss is never
negative; the leak of the denominator's HMM makes it larger. In a warm-up the denominator's weight rises from 0: with
log-probabilities that is CTC, with pronunciation variants and an n-gram, at first.

Both are sums over the paths of a topology (`core/topology.py`): CTC's, or chain's, which has silence as a unit. Beside
it, as Kaldi has them: a second head that is trained by cross-entropy towards the posteriors of the numerator, and the
squared outputs.

The n-gram is an ARPA file over the units of the lang directory:

    python -m lowbit_k2.recipe.make_lm --units data/lang_phone --order 2 --transcript data/train.txt \\
      --arpa data/lang_phone/units_2gram.arpa [--topology chain --arpa data/lang_phone/units_2gram_chain.arpa]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lowbit_k2.core.config import Config, option
from lowbit_k2.core.topology import CHAIN, CTC, SILENCE, TOPOLOGIES
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import BackoffModel, read_arpa
from lowbit_k2.graphs.unit_graphs import FrameGraph, UnitGraph, compose, expand, ngram_graph, transcript_graph
from lowbit_k2.losses.distillation import Posterior
from lowbit_k2.losses.forward_backward import GraphBatch, StateGraph, log_total, total_and_posteriors
from lowbit_k2.losses.output import PassOutput, TrainingBatch
from lowbit_k2.models.ctc import CtcModel
from lowbit_k2.models.masking import valid_frames

UNIT_LMS = {CTC: "units_2gram.arpa", CHAIN: "units_2gram_chain.arpa"}
REMEMBERED = 50_000  # transcripts whose graphs are kept


class Units(Protocol):
    """What is needed of a tokenizer."""

    def pronunciations(self, word: str) -> list[list[int]]: ...

    def pieces(self) -> list[str]: ...


@dataclass(frozen=True)
class LfMmiConfig(Config):
    """The denominator, and how it comes in."""

    unit_lm: Path | None = option(
        None,
        f"n-gram of the units, by make_lm --units; default: LANG_DIR/{UNIT_LMS[CTC]}, for chain {UNIT_LMS[CHAIN]}",
        flag="lfmmi-unit-lm",
    )
    topology: str = option(CTC, "frames and classes of a unit", flag="lfmmi-topology", choices=TOPOLOGIES)
    max_arcs: int = option(
        20_000, "of the graph of all sequences; longer histories are cut to that", flag="lfmmi-max-arcs", low=1
    )
    leak: float = option(
        0.1, "leaky HMM: weight of jumps to a new beginning in the denominator", flag="lfmmi-leak", low=0, high=1
    )
    warm_step: int = option(500, "updates in which the denominator comes in", flag="lfmmi-warm-step", low=0)
    xent_regularize: float = option(
        0.0, "weight of a second head's cross-entropy to the numerator; Kaldi has 0.1", flag="xent-regularize", low=0
    )
    output_l2: float = option(
        0.0,
        "half of this times the squared outputs is added to the loss; Kaldi has 5e-5",
        flag="lfmmi-output-l2",
        low=0,
    )

    def denominator_weight(self, update: int) -> float:
        """At an update, the first being 1."""
        return min(1.0, update / self.warm_step) if self.warm_step else 1.0


class LfMmiCriterion:
    """One pass of a CTC model, trained by LF-MMI; targets are graphs, by `encode`."""

    def __init__(self, config: LfMmiConfig) -> None:
        self.config = config
        self.language: UnitGraph | None = None
        self.denominator: StateGraph | None = None
        self.encode: Callable[[str], FrameGraph] | None = None
        self._packed: tuple[Any, GraphBatch] | None = None

    def load_units(self, units: Units, lang_dir: Path | None) -> None:
        """Read the n-gram and make the denominator.

        Raises:
          UserError: there is no n-gram, or it is one of other units or of the other topology.
        """
        topology = self.config.topology
        if self.config.unit_lm is None and lang_dir is None:
            raise UserError(f"LF-MMI reads an n-gram of units, {UNIT_LMS[topology]}: give the --lang-dir that has it")
        path = self.config.unit_lm or lang_dir / UNIT_LMS[topology]
        chosen = "" if topology == CTC else f" --topology {topology}"
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: make it with python -m lowbit_k2.recipe.make_lm --units {lang_dir} --order 2 "
                f"--transcript TEXT --arpa {path}{chosen}"
            )
        model = numbered(read_arpa(path), units.pieces(), path)
        if (str(SILENCE) in model.vocabulary) != (topology == CHAIN):
            raise UserError(f"{path} is not for the topology {topology}: make it again, with make_lm --topology")
        self.begin(model, units)

    def begin(self, model: BackoffModel, units: Units) -> None:
        """
        Args:
          model: over the units' numbers, as text.
        """
        topology = self.config.topology
        self.language = ngram_graph(model, self.config.max_arcs)
        self.denominator = StateGraph.of(expand(self.language, topology)).leaky(self.config.leak)

        @lru_cache(maxsize=REMEMBERED)
        def numerator(text: str) -> FrameGraph:
            transcript = transcript_graph([units.pronunciations(word) for word in text.split()], topology)
            return expand(compose(transcript, self.language), topology)

        self.encode = numerator

    def __call__(self, model: CtcModel, batch: TrainingBatch, update: int = 0, shared: None = None) -> PassOutput:
        """inputs (N, T, F), input_lens (N,), N graphs; utterances too short for their transcripts do not count."""
        heads = model.heads(batch.inputs, batch.input_lens)
        log_probs, lens = heads.logits.log_softmax(dim=-1), heads.lens  # (N, T', V)
        numerators, denominators, posteriors = self.totals(log_probs, lens, batch.targets)
        possible = torch.isfinite(numerators.detach())
        # infinity times 0 is no number: what cannot be is taken out before it is weighed
        spoken = torch.where(possible, numerators, torch.zeros_like(numerators)).sum()
        everything = torch.where(possible, denominators, torch.zeros_like(denominators)).sum()
        loss = (self.config.denominator_weight(update) * everything - spoken).float()
        parts = {"numerator": -spoken.detach(), "denominator": everything.detach()}
        parts["impossible"] = (~possible).sum().double()
        if heads.xent is not None:
            # silent where no path is: the posteriors are 0 there, and behind the end
            parts["xent"] = -(posteriors.to(log_probs.dtype) * heads.xent.log_softmax(dim=-1)).sum()
            loss = loss + self.config.xent_regularize * parts["xent"]
        if self.config.output_l2:
            valid = valid_frames(lens, log_probs.size(1))[..., None]
            parts["output_l2"] = 0.5 * self.config.output_l2 * (heads.logits.square() * valid).sum()
            loss = loss + parts["output_l2"]
        detached = {name: part.detach() for name, part in parts.items()}
        return PassOutput(loss, int(lens.sum()), {"ctc": Posterior.of_frames(log_probs, lens)}, detached)

    def totals(self, log_probs: Tensor, lens: Tensor, graphs: Sequence[FrameGraph]) -> tuple[Tensor, Tensor, Tensor]:
        """log Z_num and log Z_den of each utterance, (N,) float64, and the numerators' posteriors (N, T, V).

        Args:
          log_probs: (N, T, V), lens: (N,).
          graphs: N of them, by `encode`; log Z_num is -inf where one has no path that is short enough.
        """
        assert self.denominator is not None, "load_units first"
        self.denominator = self.denominator.to(log_probs.device)
        with torch.autocast(log_probs.device.type, enabled=False):
            numerators, posteriors = total_and_posteriors(log_probs, lens, self.packed(graphs))
            denominators = log_total(log_probs, lens, self.denominator)
        return numerators, denominators, posteriors

    def packed(self, graphs: Sequence[FrameGraph]) -> GraphBatch:
        """The graphs of a batch, numbered through; once for all branches of an update."""
        if self._packed is None or self._packed[0] is not graphs:
            self._packed = graphs, GraphBatch.of(graphs)
        return self._packed[1]


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
