"""Compute filter banks of a corpus's splits: features and cut manifests, the last stage before training.

  python -m lowbit_k2.recipe.compute_fbank --corpus an4 --splits "train dev test" \
    --manifest-dir data/manifests --output-dir data/fbank --perturb-speed true
  python -m lowbit_k2.recipe.compute_fbank --corpus musan --splits "music speech noise" --window 10 \
    --manifest-dir data/manifests --output-dir data/fbank

Your own data, a Kaldi data directory or any lhotse cuts (docs/own-data.md):
  python -m lowbit_k2.recipe.compute_fbank --corpus mine --splits train --kaldi-dir kaldi/train \
    --output-dir data/fbank --normalize-text upper --transcript data/transcript_train.txt

Reads `<corpus>_recordings_<split>.jsonl.gz` and `<corpus>_supervisions_<split>.jsonl.gz` (or
`<corpus>_cuts_<split>.jsonl.gz`) and writes `<corpus>_cuts_<split>.jsonl.gz` with the features beside it. Training
splits (`train*`) are written in a shuffled order, with copies at 0.9 and 1.1 of the speed if wanted. A split whose
manifest is there already is skipped if it was made from the same files and flags (`*.origin.json` says so), else
refused; the manifest is written last, so an interrupted run leaves none.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowbit_k2.core.config import Config, option
from lowbit_k2.data.extraction import compute_in_parts, parts_folder
from lowbit_k2.data.features import FeatureConfig, check_feature_config, write_feature_config
from lowbit_k2.data.kaldi_dir import KALDI_FILES, read_kaldi_dir
from lowbit_k2.data.manifests import cuts_path, read_cuts
from lowbit_k2.data.preparation import (
    manifest_files,
    prepare_cuts,
    read_manifests,
    utterances,
    with_normalized_texts,
    write_transcript,
)
from lowbit_k2.data.sources import ALLOW_COMMANDS
from lowbit_k2.data.text import NORMALIZERS
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write, read_json, write_json
from lowbit_k2.locks import exclusive
from lowbit_k2.origins import content_sha256, is_done, write_origin
from lowbit_k2.recipe.flags import add_flags, read_flags

if TYPE_CHECKING:
    from lhotse import CutSet


@dataclass(frozen=True)
class FbankConfig(Config):
    """Where the speech of some splits comes from, and what becomes of it."""

    output_dir: Path = option(Path("data/fbank"), flag="")
    corpus: str = option("", flag="")
    splits: tuple[str, ...] = option((), flag="")
    manifest_dir: Path | None = option(None, "lhotse's recordings and supervisions, or cuts")
    kaldi_dir: Path | None = option(None, "instead: a Kaldi data directory (wav.scp, text, segments)")
    cuts: Path | None = option(None, "instead: a lhotse cut manifest")
    perturb_speed: bool = option(False, "add training speech at 0.9 and 1.1")
    window: float = option(0.0, "cut recordings into windows of so many seconds", low=0)
    normalize_text: str = option("none", "case, and no punctuation", choices=NORMALIZERS)
    transcript: Path | None = option(None, "also write the texts to this file, one utterance a line")
    num_jobs: int = option(1, flag="", low=1, high=1024)
    num_splits: int = option(1, "parts, each of which is kept once it is done", low=1, high=1000000)
    device: str = option("cpu", "for kaldifeat: cpu or cuda")
    allow_commands: bool = option(False, ALLOW_COMMANDS)

    def check(self) -> None:
        if not self.splits:
            raise UserError("--splits names no split")
        if sum(source is not None for source in (self.manifest_dir, self.kaldi_dir, self.cuts)) != 1:
            raise UserError("give one of --manifest-dir, --kaldi-dir and --cuts: they say where the speech comes from")
        if len(self.splits) > 1 and (self.manifest_dir is None or self.transcript is not None):
            raise UserError("--kaldi-dir, --cuts and --transcript go with one split: call the command once for each")

    def read(self, split: str) -> CutSet:
        """The cuts as their source has them: a Kaldi data directory, a cut manifest, or the manifest folder."""
        if self.kaldi_dir is not None:
            return read_kaldi_dir(self.kaldi_dir, self.allow_commands)
        if self.cuts is not None:
            return read_cuts(self.cuts)
        return read_manifests(self.manifest_dir, self.corpus, split)

    def origin(self, split: str) -> dict[str, Any]:
        """What the features and texts of a split depend on, besides the settings of the features."""
        if self.kaldi_dir is not None:
            files = [self.kaldi_dir / name for name in KALDI_FILES]
        else:
            files = [self.cuts] if self.cuts is not None else manifest_files(self.manifest_dir, self.corpus, split)
        made_from = {path.name: content_sha256(path) for path in files if path.is_file()}
        speeds = self.perturb_speed and split.startswith("train")
        return {"normalize_text": self.normalize_text, "perturb_speed": speeds, "window": self.window, **made_from}


def compute_fbank(config: FbankConfig, features: FeatureConfig) -> None:
    """Do all splits that are not done.

    Raises:
      UserError: manifests or audio that cannot be read; features of other settings, texts or flags are there.
    """
    output_dir = config.output_dir.resolve()  # manifests name features by full paths: usable from any folder
    check_feature_config(output_dir, features)
    for split in config.splits:
        with exclusive(output_dir / f".{config.corpus}_{split}.lock"):
            compute_split(config, features, split, output_dir)


def compute_split(config: FbankConfig, features: FeatureConfig, split: str, output_dir: Path) -> None:
    """One split, if it is not done."""
    target, origin = cuts_path(output_dir, config.corpus, split), config.origin(split)
    done = is_done(target, origin)
    if done and config.transcript is None:
        return
    cuts = utterances(with_normalized_texts(config.read(split), config.normalize_text))
    if config.transcript is not None:
        write_transcript(cuts, config.transcript)
    if done:
        return
    if config.num_splits > 1:
        forget_parts_of_others(target, origin)
    cuts = prepare_cuts(cuts, split, features, config.perturb_speed, config.window)
    work = (config.num_splits, config.num_jobs, config.device, config.allow_commands)
    cuts = compute_in_parts(cuts, config.corpus, split, output_dir, features, *work)
    write_feature_config(output_dir, features)
    write_origin(target, origin)
    with atomic_write(target) as temporary:
        cuts.to_file(temporary)
    shutil.rmtree(parts_folder(target), ignore_errors=True)
    hours = sum(cut.duration for cut in cuts) / 3600
    logging.info("%s: %d cuts, %.2f hours", target, len(cuts), hours)


def forget_parts_of_others(target: Path, origin: dict[str, Any]) -> None:
    """Parts that an interrupted run left stay only where they were made from the same."""
    parts = parts_folder(target)
    record = parts / "origin.json"
    if parts.is_dir() and not (record.is_file() and read_json(record) == origin):
        logging.info("%s holds parts that were made from something else: they are made again", parts)
        shutil.rmtree(parts)
    write_json(record, origin)


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="features and cut manifests go here")
    parser.add_argument("--corpus", required=True, help="first part of the manifests' names")
    parser.add_argument("--splits", required=True, help="splits, separated by spaces")
    parser.add_argument("-j", "--num-jobs", type=int, default=1, help="processes at a time")
    add_flags(parser, FbankConfig, FeatureConfig)
    return parser


def run(args: argparse.Namespace) -> None:
    """`compute_fbank` with the settings that flags describe."""
    given = {"output_dir": args.output_dir, "corpus": args.corpus, "num_jobs": args.num_jobs}
    config = read_flags(FbankConfig, args, **given, splits=tuple(args.splits.split()))
    compute_fbank(config, read_flags(FeatureConfig, args))


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%Y-%m-%d %H:%M:%S")
    torch.set_num_threads(1)
    run(get_parser().parse_args())


if __name__ == "__main__":
    run_main(main)
