"""Flags on data, named as icefall's where it has them."""

from __future__ import annotations

import argparse
from pathlib import Path

from lowbit_k2.data.augment import SpecAugmentConfig
from lowbit_k2.data.features import EXTRACTORS, NORMALIZATIONS, FeatureConfig
from lowbit_k2.data.noise import NoiseConfig

SPEC_AUGMENT_FLAGS = {
    "time_warp_factor": (int, "frames that a point is moved by, at most; 0: no time warping"),
    "num_freq_masks": (int, "masks over mel bins"),
    "max_freq_width": (int, "their largest width in bins"),
    "num_time_masks": (int, "masks over frames"),
    "max_time_width": (int, "their largest width in frames"),
    "max_time_fraction": (float, "of an utterance, all its time masks together"),
}
NOISE_FLAGS = {
    "probability": (float, "share of the utterances that get noise"),
    "min_snr": (float, "dB: the loudest noise"),
    "max_snr": (float, "dB: the faintest"),
}


def str2bool(text: str) -> bool:
    """`true/false`, `yes/no`, `1/0`, in any case, as icefall's flags take them."""
    value = text.lower()
    if value in ("true", "yes", "t", "y", "1"):
        return True
    if value in ("false", "no", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")


def add_feature_arguments(parser: argparse._ActionsContainer) -> None:
    """Flags on how features are computed."""
    parser.add_argument("--num-mel-bins", type=int, default=80)
    parser.add_argument("--sampling-rate", type=int, default=16000, help="Hz; audio at other rates is resampled")
    parser.add_argument("--low-freq", type=float, default=FeatureConfig.low_freq, help="Hz: where the bins begin")
    parser.add_argument(
        "--high-freq",
        type=float,
        default=FeatureConfig.high_freq,
        help="Hz: where they end; zero or less counts from half the sampling rate",
    )
    parser.add_argument("--feature-extractor", choices=EXTRACTORS, default="lhotse")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that `DataConfig.from_args` reads; `--seed` is the run's own flag."""
    data = parser.add_argument_group("data")
    data.add_argument("--manifest-dir", type=Path, default=Path("data/fbank"), help="cut manifests and features")
    data.add_argument(
        "--max-duration", type=float, default=200.0, help="seconds of speech in a batch, padding included"
    )
    data.add_argument("--num-buckets", type=int, default=30, help="buckets of similar duration")
    data.add_argument("--drop-last", type=str2bool, default=False, help="leave out batches that a bucket cannot fill")
    data.add_argument("--num-workers", type=int, default=0, help="processes that load batches; 0: the main process")
    data.add_argument(
        "--cache-features", type=str2bool, default=False, help="keep features in memory (115 MB per hour)"
    )
    data.add_argument("--on-the-fly-feats", type=str2bool, default=False, help="compute features from the audio")
    data.add_argument(
        "--feature-normalize",
        choices=NORMALIZATIONS,
        default="utterance",
        help="per utterance: subtract each bin's mean, or also divide by its deviation",
    )
    data.add_argument("--enable-musan", type=str2bool, default=False, help="mix noise into training utterances")
    for name, (kind, text) in NOISE_FLAGS.items():
        flag = "--musan-" + name.replace("_", "-")
        data.add_argument(flag, type=kind, default=getattr(NoiseConfig, name), help=text)
    data.add_argument("--enable-spec-aug", type=str2bool, default=True, help="SpecAugment")
    defaults = SpecAugmentConfig()
    for name, (kind, text) in SPEC_AUGMENT_FLAGS.items():
        flag = "--spec-aug-" + name.replace("_", "-")
        data.add_argument(flag, type=kind, default=getattr(defaults, name), help=text)
