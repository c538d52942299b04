"""Hidden states of cuts, by a HuBERT from its checkpoint: for clusters, and for whatever learns from them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowbit_k2.asr.finished import model_digest
from lowbit_k2.asr.model_io import CheckpointChoice, LoadedModel, load_trained, parse_allocation
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.encoders import whole_numbers
from lowbit_k2.core.hubert import SAMPLING_RATE, HubertConfig
from lowbit_k2.data.datamodule import DataConfig
from lowbit_k2.data.preparation import manifest_files, speech_cuts
from lowbit_k2.data.sources import ALLOW_COMMANDS
from lowbit_k2.data.waveforms import WaveformModule
from lowbit_k2.errors import UserError
from lowbit_k2.origins import content_sha256
from lowbit_k2.quant import Allocation, use_precision

if TYPE_CHECKING:
    from lhotse import CutSet


def split_words(text: str) -> tuple[str, ...]:
    """`train dev` -> ("train", "dev")."""
    return tuple(text.split())


@dataclass(frozen=True)
class SpeechConfig(Config):
    """Which audio is read, and how much of it at a time."""

    corpus: str = option("librispeech", "first part of the manifests' names")
    splits: tuple[str, ...] = option((), "splits, separated by spaces", parse=split_words)
    manifest_dir: Path = option(Path("data/manifests"), "recordings and supervisions, or cut manifests")
    max_duration: float = option(100.0, "seconds of speech that go through the network at a time", above=0)
    num_threads: int = option(0, "CPU threads; 0 leaves PyTorch's choice", low=0, high=4096)
    allow_commands: bool = option(False, ALLOW_COMMANDS)

    def check(self) -> None:
        if not self.splits:
            raise ConfigError("splits", "is needed: names of splits, separated by spaces")

    def cuts(self, split: str) -> CutSet:
        """Utterances at 16 kHz; raises UserError as `speech_cuts` does."""
        return speech_cuts(self.manifest_dir, self.corpus, [split], SAMPLING_RATE)

    def module(self, normalize: bool = False) -> WaveformModule:
        """What makes batches of them."""
        own = {"manifest_dir": self.manifest_dir, "max_duration": self.max_duration}
        data = DataConfig(**own, allow_commands=self.allow_commands, spec_augment=None)
        return WaveformModule(data, normalize=normalize)


@dataclass(frozen=True)
class Representation:
    """A HuBERT at one precision."""

    loaded: LoadedModel
    allocation: Allocation

    @classmethod
    def load(cls, choice: CheckpointChoice, precision: str = "") -> Representation:
        """From checkpoints; the highest precision by default.

        Raises:
          UserError: they are missing, damaged, of another kind of model, or were never trained at that precision.
        """
        loaded, _ = load_trained(choice)
        if not isinstance(loaded.model_config, HubertConfig):
            raise UserError(f"a model of kind {loaded.model_config.kind} has no hidden states: give a HuBERT")
        return cls(loaded, parse_allocation(precision or loaded.usual_precision, loaded))

    @property
    def config(self) -> HubertConfig:
        return self.loaded.model_config

    def describe(self, layers: Sequence[int]) -> dict[str, Any]:
        """What the states of these layers depend on."""
        return {"model": model_digest(self.loaded), "bits": dict(self.allocation.bits), "layers": list(layers)}

    def layers(self, text: str) -> tuple[int, ...]:
        """`all`, or numbers as `0,3,5`: 0 is the Transformer's input, i the output of its layer i.

        Raises:
          ConfigError: no such layer.
        """
        last = self.config.num_layers
        if text == "all":
            return tuple(range(last + 1))
        try:
            found = whole_numbers(text)
        except ValueError:
            found = (-1,)
        if not all(0 <= layer <= last for layer in found):
            raise ConfigError("layers", f"{text}: give all, or numbers from 0 (the input) to {last}, as 0,{last}")
        return found

    @torch.no_grad()
    def states(self, module: WaveformModule, cuts: CutSet, layers: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        """Id and hidden states side by side, (T, len(layers) d_model) float32, of all cuts, long ones first.

        Raises:
          UserError: audio that cannot be read, or is shorter than a frame.
        """
        model = self.loaded.model
        device = next(model.parameters()).device
        with use_precision(model, self.allocation):
            for batch in module.valid_batches(cuts):
                batch = batch.to(device)
                found = model(batch.inputs, batch.input_lens)
                states = torch.cat([found.hidden_states[layer] for layer in layers], dim=-1).cpu().numpy()
                for name, row, frames in zip(batch.ids, states, found.lens.tolist(), strict=True):
                    yield name, row[:frames]


def long_enough(cuts: CutSet, network: HubertConfig, split: str) -> CutSet:
    """Those that have a frame; the others are counted.

    Raises:
      UserError: none has.
    """
    kept = cuts.filter(lambda cut: network.output_lens(cut.num_samples) > 0).to_eager()
    short = f"shorter than the window of one frame, {network.min_frames} samples at 16 kHz"
    if not len(kept):
        raise UserError(f"{split}: every cut is {short}: give longer audio, or look at the manifests")
    if len(kept) < len(cuts):
        first = next(cut.id for cut in cuts if cut.id not in kept)
        logging.warning("%s: %d cuts are left out, first %s: %s", split, len(cuts) - len(kept), first, short)
    return kept


def made_from(speech: SpeechConfig, split: str) -> dict[str, str]:
    """Checksums of the manifests of a split."""
    files = manifest_files(speech.manifest_dir, speech.corpus, split)
    return {path.name: content_sha256(path) for path in files if path.is_file()}
