"""The recipes' own code on cuts of the test: flags in, trained checkpoints, decoded or exported files out."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lowbit_k2.asr.decoding import run_decode
from lowbit_k2.asr.exporting import run_export
from lowbit_k2.asr.transcription import run_transcription
from lowbit_k2.recipe.decoding_flags import (
    add_decoding_flags,
    add_export_flags,
    decoding_errors,
    read_decoding_flags,
    read_export_flags,
)

ROOT = Path(__file__).resolve().parents[2]


def run_training(args: argparse.Namespace, train_cuts: Any, valid_cuts: Any) -> None:
    """`main` of egs/an4/train.py with these flags, on these cuts."""
    spec = importlib.util.spec_from_file_location("an4_train", ROOT / "egs/an4/train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.make_parser = lambda: SimpleNamespace(parse_args=lambda: args)
    script.load_cuts = lambda folder, corpus, split: train_cuts if split == "train" else valid_cuts
    script.main()


def parse_decoding(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_decoding_flags(parser)
    return parser.parse_args(list(flags))


def decode(load_test_sets: Callable[[], Mapping[str, Any]], *flags: str) -> dict:
    """What decode.py does with these flags."""
    args = parse_decoding(*flags)
    with decoding_errors():
        config = read_decoding_flags(args)
        if args.wav:
            run_transcription(config, args.wav)
            return {}
        return run_decode(config, load_test_sets)


def export(load_train_cuts: Callable[[], Any], *flags: str) -> Any:
    """What export.py does with these flags."""
    parser = argparse.ArgumentParser()
    add_export_flags(parser)
    with decoding_errors():
        return run_export(read_export_flags(parser.parse_args(list(flags))), load_train_cuts)
