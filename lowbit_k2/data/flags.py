"""Flags on data, named as icefall's where it has them."""

from __future__ import annotations

import argparse

from lowbit_k2.data.features import EXTRACTORS, FeatureConfig


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
