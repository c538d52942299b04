"""Store hidden states of a HuBERT as the features of lhotse cuts, on which any recipe can train (docs/hubert.md).

  python -m lowbit_k2.recipe.extract_states --exp-dir exp/hubert-1bit --precision 1 --layers all \
    --corpus an4 --splits "train dev test" --manifest-dir data/manifests --output-dir data/states-1bit

Writes `<corpus>_cuts_<split>.jsonl.gz` with the features beside it, the states of the chosen layers side by side, and
features.json. A split that is there already is skipped if it was made from the same, else refused. Layer 0 is the
Transformer's input, layer i the output of its layer i.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowbit_k2.asr.model_io import CheckpointChoice
from lowbit_k2.asr.representations import Representation, SpeechConfig, long_enough, made_from
from lowbit_k2.core.config import Config, option
from lowbit_k2.core.features import STATES, FeatureConfig
from lowbit_k2.core.hubert import SAMPLING_RATE
from lowbit_k2.data.extraction import remove_features
from lowbit_k2.data.features import check_feature_config, write_feature_config
from lowbit_k2.data.manifests import cuts_path
from lowbit_k2.errors import run_main
from lowbit_k2.fileio import atomic_write
from lowbit_k2.locks import exclusive
from lowbit_k2.origins import is_done, write_origin
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.flags import add_flags, errors_name_flags, make_parser, read_flags

if TYPE_CHECKING:
    from lhotse import CutSet, Features
    from lhotse.cut import Cut
    from lhotse.features.io import FeaturesWriter

PRECISION = -8  # states are stored as multiples of 2^-8, in about a byte each


@dataclass(frozen=True)
class ExtractConfig(Config):
    """Which states, and where they go."""

    output_dir: Path = option(Path("data/states"), "states and cut manifests go here")
    layers: str = option("all", "layers, as 0,3,5, or all; 0: the Transformer's input")
    precision: str = option("", "of the model; default: the highest it was trained at")


def extract_states(config: ExtractConfig, speech: SpeechConfig, choice: CheckpointChoice) -> None:
    """Do all splits that are not done.

    Raises:
      UserError: manifests, audio or the model cannot be read, or states of another model are there.
    """
    model = Representation.load(choice, config.precision)
    layers = model.layers(config.layers)
    shift = model.config.samples_per_frame / SAMPLING_RATE
    width = len(layers) * model.config.d_model
    features = FeatureConfig(type=STATES, num_mel_bins=width, frame_shift=shift, normalize="none")
    output_dir = config.output_dir.resolve()
    check_feature_config(output_dir, features)
    for split in speech.splits:
        target = cuts_path(output_dir, speech.corpus, split)
        origin = {**model.describe(layers), **made_from(speech, split)}
        with exclusive(output_dir / f".{speech.corpus}_{split}.lock"):
            if is_done(target, origin):
                continue
            cuts = long_enough(speech.cuts(split), model.config, split)
            rows = model.states(speech.module(model.config.norm_first), cuts, layers)
            stored = store(cuts, progress_bar(rows, f"states of {split}", total=len(cuts)), output_dir, target, shift)
            write_feature_config(output_dir, features)
            write_origin(target, origin)
            with atomic_write(target) as temporary:
                stored.to_file(temporary)
            logging.info("%s: %d cuts, %d layers, %d numbers a frame", target, len(stored), len(layers), width)


def store(cuts: CutSet, rows: Iterable[tuple[str, np.ndarray]], output_dir: Path, target: Path, shift: float) -> CutSet:
    """The cuts with their states (id, (T, C)) as features, in their own order."""
    from lhotse import CutSet, LilcomChunkyWriter
    from lhotse.utils import fastcopy

    storage = output_dir / f"feats_{target.name.split('.')[0]}"
    remove_features(storage)  # left by an interrupted run
    by_id, found = {cut.id: cut for cut in cuts}, {}
    try:
        with LilcomChunkyWriter(storage, tick_power=PRECISION) as writer:
            for name, states in rows:
                found[name] = features_of(by_id[name], states, shift, writer)
    except BaseException:
        remove_features(storage)
        raise
    return CutSet.from_cuts(fastcopy(cut, features=found[cut.id]) for cut in cuts)


def features_of(cut: Cut, states: np.ndarray, shift: float, writer: FeaturesWriter) -> Features:
    """What a manifest says of stored states; the last is repeated where lhotse counts more frames."""
    from lhotse import Features
    from lhotse.utils import compute_num_frames

    frames = compute_num_frames(cut.duration, shift, cut.sampling_rate)
    states = np.pad(states, ((0, max(0, frames - len(states))), (0, 0)), mode="edge")[:frames]
    return Features(
        type=STATES,
        num_frames=frames,
        num_features=states.shape[1],
        frame_shift=shift,
        sampling_rate=cut.sampling_rate,
        start=cut.start,
        duration=cut.duration,
        storage_type=writer.name,
        storage_path=str(writer.storage_path),
        storage_key=writer.write(cut.id, states),
        recording_id=cut.recording_id,
        channels=cut.channel,
    )


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = make_parser(__doc__)
    add_flags(parser, SpeechConfig, ExtractConfig, CheckpointChoice)
    return parser


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%Y-%m-%d %H:%M:%S")
    args = get_parser().parse_args()
    configs = [read_flags(cls, args) for cls in (ExtractConfig, SpeechConfig, CheckpointChoice)]
    if configs[1].num_threads:
        torch.set_num_threads(configs[1].num_threads)
    with errors_name_flags([(type(config), "") for config in configs]):
        extract_states(*configs)


if __name__ == "__main__":
    run_main(main)
