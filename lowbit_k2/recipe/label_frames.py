"""Label the frames of speech by k-means: the classes of masked prediction (docs/hubert.md).

  python -m lowbit_k2.recipe.label_frames --corpus an4 --splits "train dev" --manifest-dir data/manifests \
    --output-dir data/labels-mfcc --num-clusters 100
  python -m lowbit_k2.recipe.label_frames --corpus an4 --splits "train dev" --manifest-dir data/manifests \
    --output-dir data/labels-layer6 --num-clusters 500 --exp-dir exp/hubert-1 --layer 6

The first clusters are those of MFCC, the second those of hidden states of a model that was trained on the first. They
are made of the first split's speech, and are written to `clusters.safetensors`; labels go to
`<corpus>_labels_<split>.safetensors`. What is there already and made from the same is skipped, anything else refused.
scikit-learn makes the clusters: pip install -r requirements-hubert.txt.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowbit_k2.asr.model_io import CheckpointChoice
from lowbit_k2.asr.representations import Representation, SpeechConfig, long_enough, made_from
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.data.clusters import ClusterConfig, Clusters, MfccFrames
from lowbit_k2.data.frame_labels import FrameLabels, labels_path
from lowbit_k2.errors import run_main
from lowbit_k2.fileio import sha256
from lowbit_k2.origins import is_done, write_origin
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.flags import add_flags, errors_name_flags, make_parser, read_flags

if TYPE_CHECKING:
    from lhotse import CutSet


@dataclass(frozen=True)
class LabelConfig(Config):
    """What is clustered, and where labels go."""

    output_dir: Path = option(Path("data/labels"), "clusters and labels go here")
    layer: int = option(-1, "cluster hidden states behind this layer of the model in --exp-dir; -1: MFCC", low=-1)
    precision: str = option("", "precision of that model; default: the highest it was trained at")
    model: str = option("base", "MFCC: whose frames are labelled; all sizes have the same", choices=HubertConfig.sizes)


class Frames:
    """Vectors of the frames of cuts: MFCC, or a layer's hidden states."""

    def __init__(self, config: LabelConfig, speech: SpeechConfig, choice: CheckpointChoice) -> None:
        """Raises UserError where the model or the layer is not there."""
        self.representation = Representation.load(choice, config.precision) if config.layer >= 0 else None
        if self.representation is None:
            self.network, self.origin = HubertConfig.preset(config.model), {"frames": "mfcc"}
            self.origin["samples_per_frame"] = self.network.samples_per_frame
            self.mfcc = MfccFrames(self.network)
        else:
            self.network = self.representation.config
            try:
                self.layers = self.representation.layers(str(config.layer))
            except ConfigError:
                raise ConfigError("layer", f"{config.layer}: the model has 0 to {self.network.num_layers}") from None
            self.origin = {"frames": "states", **self.representation.describe(self.layers)}
        self.module = speech.module(self.network.norm_first)

    def of(self, cuts: CutSet) -> Iterator[tuple[str, np.ndarray]]:
        """Id and (T, C) of each cut."""
        if self.representation is not None:
            yield from self.representation.states(self.module, cuts, self.layers)
            return
        for cut in cuts:
            yield cut.id, self.mfcc(self.module.load(cut))


def label_frames(config: LabelConfig, speech: SpeechConfig, clusters: ClusterConfig, choice: CheckpointChoice) -> None:
    """Make the clusters, and label all splits, whatever of it is not done.

    Raises:
      UserError: manifests, audio or the model cannot be read, or what is there was made from something else.
    """
    frames = Frames(config, speech, choice)
    path = make_clusters(config, speech, clusters, frames)
    found = Clusters.load(path)
    for split in speech.splits:
        target = labels_path(config.output_dir, speech.corpus, split)
        origin = {**frames.origin, "clusters": sha256(path), **made_from(speech, split)}
        if is_done(target, origin):
            continue
        cuts = long_enough(speech.cuts(split), frames.network, split)
        rows = progress_bar(frames.of(cuts), f"labels of {split}", total=len(cuts))
        labels = FrameLabels({name: found.assign(row) for name, row in rows}, len(found.centroids))
        write_origin(target, origin)
        labels.save(target)
        logging.info("%s: %s of %d cuts", target, f"{sum(map(len, labels.by_id.values())):,} frames", len(cuts))


def make_clusters(config: LabelConfig, speech: SpeechConfig, clusters: ClusterConfig, frames: Frames) -> Path:
    """The file of clusters, made of the first split where it is not there."""
    split, target = speech.splits[0], config.output_dir / "clusters.safetensors"
    origin = {**frames.origin, **clusters.to_dict(), **made_from(speech, split)}
    if not is_done(target, origin):
        cuts = long_enough(speech.cuts(split), frames.network, split)
        cuts = drawn(cuts, frames.network, clusters)
        rows = progress_bar(frames.of(cuts), "frames to cluster", total=len(cuts))
        every = np.concatenate([row for _, row in rows])
        logging.info("k-means: %d clusters of %s frames, %d cuts", clusters.num_clusters, f"{len(every):,}", len(cuts))
        made = Clusters.fit(every, clusters)
        write_origin(target, origin)
        made.save(target)
    return target


def drawn(cuts: CutSet, network: HubertConfig, config: ClusterConfig) -> CutSet:
    """Cuts in an order drawn by `cluster_seed`, until they have `max_frames`."""
    order = sorted(cuts, key=lambda cut: cut.id)
    random.Random(config.cluster_seed).shuffle(order)
    frames, chosen = 0, []
    for cut in order:
        if frames >= config.max_frames:
            break
        chosen.append(cut)
        frames += network.output_lens(cut.num_samples)
    return type(cuts).from_cuts(chosen)


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = make_parser(__doc__)
    add_flags(parser, SpeechConfig, LabelConfig, ClusterConfig, CheckpointChoice)
    return parser


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%Y-%m-%d %H:%M:%S")
    args = get_parser().parse_args()
    configs = [read_flags(cls, args) for cls in (LabelConfig, SpeechConfig, ClusterConfig, CheckpointChoice)]
    if configs[1].num_threads:
        torch.set_num_threads(configs[1].num_threads)
    with errors_name_flags([(type(config), "") for config in configs]):
        label_frames(*configs)


if __name__ == "__main__":
    run_main(main)
