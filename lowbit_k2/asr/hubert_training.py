"""Settings and set-up of the training of a HuBERT: what train_hubert.py has besides what all trainings share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit_k2.asr.representations import split_words
from lowbit_k2.asr.training import TrainingConfig
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.hubert import SAMPLING_RATE, HubertConfig
from lowbit_k2.core.models import model_config_from_dict
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.datamodule import DataConfig
from lowbit_k2.data.filter import FilterConfig, filter_cuts
from lowbit_k2.data.frame_labels import FrameLabels, labels_path
from lowbit_k2.data.preparation import speech_cuts
from lowbit_k2.data.waveforms import WaveformModule
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import sha256
from lowbit_k2.train.checkpoint import load_checkpoint
from lowbit_k2.train.distributed import DistributedContext

if TYPE_CHECKING:
    from lhotse import CutSet

STUDENT = {"dropout": 0.0, "ffn_dropout": 0.0, "attention_dropout": 0.0}  # what it is compared with has no noise
MASKED, DISTILLATION = "masked-prediction", "distillation"  # names in losses/objectives.py


@dataclass(frozen=True)
class HubertDataConfig(Config):
    """Which speech, and the labels of its frames."""

    corpus: str = option("librispeech", "first part of the manifests' names")
    train_splits: tuple[str, ...] = option(("train-clean-100",), "splits to learn, by spaces", parse=split_words)
    valid_splits: tuple[str, ...] = option(("dev-clean",), "splits that losses are told of", parse=split_words)
    labels_dir: Path | None = option(None, "what label_frames wrote, for masked-prediction")
    speech: DataConfig = option(DataConfig, flag="")


@dataclass(frozen=True)
class Speech:
    """Cuts for training and validation, and what makes batches of them."""

    module: WaveformModule
    train: CutSet
    valid: CutSet

    def train_batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        return self.module.train_batches(self.train, epoch, skip)

    def num_train_batches(self, epoch: int) -> int | None:
        return self.module.num_train_batches(self.train, epoch)

    def valid_batches(self) -> Iterator[Batch]:
        return self.module.valid_batches(self.valid)

    def largest_batches(self) -> Mapping[str, Batch]:
        return self.module.largest_batches(self.train)


def load_labels(config: TrainingConfig) -> FrameLabels | None:
    """Those of all splits, where they are what is learnt.

    Raises:
      UserError: the folder is not named, or a file is missing or damaged.
    """
    data = config.data
    if config.objective != MASKED:
        return None
    if data.labels_dir is None:
        raise ConfigError("labels_dir", "is needed: the folder that lowbit_k2.recipe.label_frames wrote")
    return FrameLabels.load(label_files(data).values())


def label_files(data: HubertDataConfig) -> dict[str, Path]:
    """By split."""
    return {
        split: labels_path(data.labels_dir, data.corpus, split) for split in (*data.train_splits, *data.valid_splits)
    }


def describe_labels(config: TrainingConfig) -> dict[str, Any]:
    """Checksums for a checkpoint: a run does not go on with other labels."""
    if config.objective != MASKED:
        return {}
    return {split: sha256(path) for split, path in label_files(config.data).items()}


def hubert_config(config: TrainingConfig, labels: FrameLabels | None) -> HubertConfig:
    """Settings of the model: those of a size, with the labels' classes; a student's are its teacher's, but no dropout.

    Raises:
      UserError: the teacher is missing, damaged, or another kind of model.
    """
    if config.objective == MASKED:
        return config.model_config(labels.num_classes)
    path = Path(config.co_training.teacher)
    teacher = model_config_from_dict(load_checkpoint(path).meta["model"])
    if not isinstance(teacher, HubertConfig):
        raise ConfigError("teacher", f"{path} is a {teacher.kind}: give a HuBERT's checkpoint")
    return replace(teacher.backbone, **STUDENT)


def load_speech(
    data: HubertDataConfig, model: HubertConfig, labels: FrameLabels | None, ranks: DistributedContext
) -> Speech:
    """Both sets, without what is shorter than a frame.

    Raises:
      UserError: a manifest is missing or damaged, too many cuts cannot be used, or labels are of other audio.
    """
    module = WaveformModule(data.speech, labels, model.norm_first, ranks.world_size, ranks.rank)
    speech = data.speech
    limits = {"min_seconds": speech.min_cut_duration, "max_seconds": speech.max_cut_duration or float("inf")}
    sets = []
    for role, splits, own in (("training", data.train_splits, limits), ("validation", data.valid_splits, {})):
        cuts = speech_cuts(speech.manifest_dir, data.corpus, splits, SAMPLING_RATE)
        config = FilterConfig(
            model.output_lens, module.features, input_frames=lambda cut: cut.num_samples, needs_text=False, **own
        )
        cuts, report = filter_cuts(cuts, len, config, f"the {role} set")
        hours = sum(cut.duration for cut in cuts) / 3600
        logging.info("%s: %s, %.2f hours", role, report, hours)
        if labels is not None:
            check_labels(cuts, labels, model)
        sets.append(cuts)
    return Speech(module, *sets)


def check_labels(cuts: CutSet, labels: FrameLabels, model: HubertConfig) -> None:
    """Every frame has one.

    Raises:
      UserError: a cut has none, or another number of them than frames.
    """
    for cut in cuts:
        found, frames = len(labels.by_id.get(cut.id, ())), model.output_lens(cut.num_samples)
        if found != frames:
            raise UserError(
                f"cut {cut.id} has {frames} frames, but {found} labels: label the frames of these very manifests"
            )
