"""Unsupervised adaptation to the speakers of a test set, and the pass that decodes it adapted: LHUC (models/lhuc.py).

Each search's first-pass words are the targets: for every speaker, r descends on their loss (CTC's, or that of LF-MMI
where it trained the model), an utterance at a time, while all weights stay as they are,

    r <- r - lr * g / rms(g),    g = d loss / dr,    rms over all layers of the speaker's vectors

The length of g is set aside, because it says more of the model than of the speaker: what lr = 0.005 does takes plain
steps of some 5 times the gradient per frame for an AN4 TDNN-F trained by LF-MMI, 12 for a float Conformer and 100 for a
1-bit one.

A batch holds no two utterances of a speaker. So what a speaker's vectors become does not depend on who else is in the
test set, on the size of batches or on the number of processes; nothing is drawn by chance.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowbit_k2.asr.model_io import LoadedModel
from lowbit_k2.asr.one_pass import decode_set
from lowbit_k2.asr.recognizer import Recognizer
from lowbit_k2.asr.results import Adaptation, SetOutcome
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.lhuc import LhucConfig
from lowbit_k2.core.models import CTC
from lowbit_k2.core.topology import CTC as CTC_TOPOLOGY
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.datamodule import AsrDataModule
from lowbit_k2.data.filter import FilterConfig, reason_to_drop
from lowbit_k2.data.manifests import cuts_by_speaker
from lowbit_k2.errors import UserError, is_out_of_memory
from lowbit_k2.losses.ctc import ctc_loss
from lowbit_k2.losses.lfmmi import LfMmiConfig, LfMmiCriterion
from lowbit_k2.models.lhuc import SpeakerVectors, frozen_weights, hidden_layers, scaled_units

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

Advance = Callable[[int], object]  # is told of utterances that are done
Targets = Mapping[str, Any]  # by utterance: token ids, or a graph where the model's topology is another than CTC's
LFMMI = "lfmmi"  # name of the objective in a checkpoint's settings
SMALLEST_RMS = 1e-12  # of a gradient: where there is none, there is no step
WORDING = {"empty-text": "empty", "over-max-cut-duration": "longer than a chunk"}  # of the filter's reasons


def check_adaptable(loaded: LoadedModel, lang_dir: Path | None) -> None:
    """
    Raises:
      UserError: a model without CTC, an encoder that does not say where its hidden units are, or no n-gram for LF-MMI.
    """
    config = loaded.model_config
    if CTC not in config.networks:
        raise ConfigError(
            "epochs", f"needs CTC, which this {config.kind} model lacks: train it with --objective ctc-rnnt, or use 0"
        )
    if not hidden_layers(loaded.model):
        raise ConfigError("epochs", f"finds no hidden_layers in the encoder of this {config.kind} model: use 0")
    HypothesisLoss.for_model(loaded, lang_dir)


def num_passes(config: LhucConfig) -> int:
    """How often each search's utterances go through the network: the losses before and behind, and a search."""
    return config.epochs + 3


def second_pass(
    recognizer: Recognizer,
    data: AsrDataModule,
    cuts: CutSet,
    first: SetOutcome,
    config: LhucConfig,
    lost: dict[str, str],
    advance: Advance = lambda n: None,
) -> SetOutcome:
    """Decode a test set with the model adapted to its speakers, for each search on what that search has found before.

    Args:
      first: what the first pass has found, of these cuts or of more.
      lost: takes the cuts that cannot be read, with the reason.
      advance: called with numbers of utterances, `num_passes` times the cuts for each search in all.

    Returns:
      Its time is that of the first pass, the adaptation and the second pass, all of it said to be the search's.

    Raises:
      UserError: too little memory for a batch and its gradients.
    """
    outcome = SetOutcome.empty(recognizer.searches)
    for key, method in recognizer.searches.items():
        hypotheses = {utterance: words for utterance, _, words in first.found[key]}
        adapter = Adapter.of(recognizer, cuts, hypotheses, config.lr, method.setup.lang_dir)
        found = adapter.adapt(data, cuts, config.epochs, advance)
        adapted = replace(recognizer, searches={key: method}, vectors=adapter.vectors)
        new = decode_set(adapted, data.test_batches(cuts, lost), recognizer.features.frame_shift, advance)
        new.timing.search[key] += new.timing.network + adapter.seconds
        new.timing.search[key] += first.real_time_factor(key) * new.timing.audio
        outcome.take(key, replace(new, adaptations={key: found}))
    return outcome


@dataclass
class Adapter:
    """Speakers' vectors on the way.

    Attributes:
      targets: of the utterances that are adapted on.
      left_out: numbers of the others, by reason.
      loss: that is descended on.
      seconds: spent in the network.
    """

    recognizer: Recognizer
    vectors: SpeakerVectors
    targets: Targets
    left_out: Counter[str]
    lr: float
    loss: HypothesisLoss
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        recognizer: Recognizer,
        cuts: CutSet,
        hypotheses: Mapping[str, Sequence[str]],
        lr: float,
        lang_dir: Path | None = None,
    ) -> Adapter:
        """At r = 0; every speaker of the cuts has vectors, with hypotheses or without.

        Raises:
          UserError: as `HypothesisLoss.for_model`.
        """
        loss = HypothesisLoss.for_model(recognizer.loaded, lang_dir)
        rows = {cut.id: row for row, own in enumerate(cuts_by_speaker(cuts)) for cut in own}
        vectors = SpeakerVectors(recognizer.loaded.model, rows, recognizer.device)
        return cls(recognizer, vectors, *targets_of(recognizer, cuts, hypotheses, loss.encode), lr, loss)

    def adapt(self, data: AsrDataModule, cuts: CutSet, epochs: int, advance: Advance = lambda n: None) -> Adaptation:
        """Descend for some epochs; what the hypotheses' loss was, and what it is."""
        advance((epochs + 2) * (len(self.vectors.rows) - len(self.targets)))
        speakers = [own for own in cuts_by_speaker(cut for cut in cuts if cut.id in self.targets)]
        batches = partial(rounds, speakers, data.config.max_duration)
        losses, frames = [], 0
        with self.recognizer.precision(), frozen_weights(self.recognizer.loaded.model):
            for lr in (0.0, *[self.lr] * epochs, 0.0):
                loss, frames = self.go_through(data.load_batches(batches(), {}), lr, advance)
                losses.append(loss)
        return Adaptation(len(speakers), len(self.targets), self.left_out, losses[0], losses[-1], frames)

    def go_through(self, batches: Iterator[Batch], lr: float, advance: Advance) -> tuple[float, int]:
        """Loss, and frames; with lr > 0 the vectors descend from batch to batch."""
        loss, frames = 0.0, 0
        for batch in batches:
            start = time.perf_counter()
            try:
                batch_loss, batch_frames = self.step(batch, lr)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError("there is too little memory to adapt to the speakers: lower max_duration") from None
            loss, frames = loss + batch_loss, frames + batch_frames
            self.seconds += time.perf_counter() - start
            advance(len(batch.ids))
        return loss, frames

    def step(self, batch: Batch, lr: float) -> tuple[float, int]:
        """Loss of a batch and its frames; with lr > 0 one step on it."""
        chosen = [r.requires_grad_(lr > 0.0) for r in self.vectors.of(batch.ids)]  # (N, C) of each layer
        with torch.set_grad_enabled(lr > 0.0), scaled_units(self.recognizer.loaded.model, chosen):
            loss, lens = self.loss(self.recognizer, batch, [self.targets[name] for name in batch.ids])
        if lr > 0.0:
            gradients = torch.autograd.grad(loss, chosen)
            rms = torch.cat(gradients, dim=1).square().mean(dim=1, keepdim=True).sqrt()  # (N, 1)
            self.vectors.descend(batch.ids, [lr * g / rms.clamp(min=SMALLEST_RMS) for g in gradients])
        return float(loss.detach()), int(lens.sum())


@dataclass(frozen=True)
class HypothesisLoss:
    """What is descended on: CTC's loss, or that of LF-MMI where the model was trained by it.

    Attributes:
      encode: text -> target.
      of: log_probs (N, T, V), lens (N,), N targets -> scalar, summed (nats).
    """

    encode: Callable[[str], Any]
    of: Callable[[Tensor, Tensor, Sequence[Any]], Tensor]

    @classmethod
    def for_model(cls, loaded: LoadedModel, lang_dir: Path | None) -> HypothesisLoss:
        """
        Args:
          lang_dir: where LF-MMI finds its n-gram of units.

        Raises:
          UserError: it is not there.
        """
        topology, settings = loaded.model_config.topology, (loaded.meta or {}).get("settings", {})
        if LFMMI not in settings and topology == CTC_TOPOLOGY:
            return cls(loaded.tokenizer.encode, ctc_loss)
        # a packed file does not know what trained it: the chain topology is LF-MMI's alone
        config = LfMmiConfig.from_dict(settings[LFMMI]) if LFMMI in settings else LfMmiConfig(topology=topology)
        criterion = LfMmiCriterion(config)
        criterion.load_units(loaded.tokenizer, lang_dir)

        def loss(log_probs: Tensor, lens: Tensor, targets: Sequence[Any]) -> Tensor:
            numerators, denominators, _ = criterion.totals(log_probs, lens, targets)
            return (denominators - numerators).sum()

        return cls(criterion.encode, loss)

    def __call__(self, recognizer: Recognizer, batch: Batch, targets: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """The loss of N targets, and output frames (N,), both on the CPU.

        On a GPU the gradient of torch's CTC loss adds up in no fixed order.
        """
        device = recognizer.device
        output = recognizer.loaded.model.network_output(batch.inputs.to(device), batch.input_lens.to(device))
        lens = output["lens"].cpu()
        return self.of(output["log_probs"].cpu(), lens, targets), lens


def targets_of(
    recognizer: Recognizer,
    cuts: Collection[Cut],
    hypotheses: Mapping[str, Sequence[str]],
    encode: Callable[[str], Any] | None = None,
) -> tuple[dict[str, Any], Counter[str]]:
    """What the words of each utterance are to the model.

    Args:
      encode: text -> target; the tokenizer's by default: units, of words with several pronunciations the first one.

    Returns:
      By utterance those that can be aligned, and the numbers of the others by reason; utterances without hypothesis,
      which could not be decoded, are in neither.
    """
    loaded, seconds = recognizer.loaded, recognizer.chunking.chunk_seconds
    config = FilterConfig(
        loaded.model_config.output_lens,
        recognizer.features,
        max_seconds=seconds or float("inf"),
        unknown=loaded.tokenizer.unknown,
    )
    targets: dict[str, Any] = {}
    left_out: Counter[str] = Counter()
    for cut in cuts:
        if cut.id not in hypotheses:
            continue
        text = " ".join(hypotheses[cut.id])
        reason = reason_to_drop(cut, loaded.tokenizer.encode, config, text)
        if reason is None:
            targets[cut.id] = (encode or loaded.tokenizer.encode)(text)
        else:
            left_out[WORDING.get(reason, reason)] += 1
    return targets, left_out


def rounds(speakers: Sequence[Sequence[Cut]], max_duration: float) -> Iterator[CutSet]:
    """The first cut of every speaker, then the second of every one that has it, and so on, in batches.

    Args:
      max_duration: seconds in a batch, padding included; a longer cut is a batch by itself.
    """
    from lhotse import CutSet

    for same_place in zip_longest(*speakers):
        left = sorted((cut for cut in same_place if cut is not None), key=lambda cut: -cut.duration)
        while left:
            size = max(1, int(max_duration / left[0].duration))
            yield CutSet.from_cuts(left[:size])
            left = left[size:]
