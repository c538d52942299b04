"""The flags of decode.py, export.py and evaluate.py, from the settings of `lowbit_k2.asr`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowbit_k2.asr.exporting import ExportConfig
from lowbit_k2.asr.model_io import CheckpointChoice
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.core.chunks import ChunkConfig
from lowbit_k2.core.lhuc import LhucConfig
from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.recipe.flags import add_flags, add_plugin_argument, errors_name_flags, read_flags

PRECISIONS = "1, 2, 1.5, 1.5r, 32, one per layer as 1,1,2,2, or a file with an allocation"


def add_decoding_flags(parser: argparse.ArgumentParser, precisions: bool = True) -> None:
    """Flags that `read_decoding_flags` reads; names as icefall's where it has them.

    Args:
      precisions: with `--packed` and `--precision`, and with what makes several results of one: LHUC.
    """
    model = parser.add_argument_group("model")
    add_plugin_argument(model)
    if precisions:
        help_ = "the folder that train.py wrote; results go there, or else beside a packed file"
        model.add_argument("--exp-dir", type=Path, default=Path("exp"), action=_NoteThatGiven, help=help_)
        add_flags(model, DecodeConfig, only=("packed",))
    add_flags(model, CheckpointChoice)
    if precisions:
        text = f"{PRECISIONS}; several are decoded in turn; default: the first trained"
        model.add_argument("--precision", nargs="+", default=[], help=text)
    add_flags(parser.add_argument_group("long audio"), ChunkConfig)
    search = parser.add_argument_group("search")
    models = ("lang_dir", "lm_dir", "token_lm", "lm_scale", "lodr_lm", "lodr_scale")
    rescoring = ("rescore_lm", "rescore_lm_scale", "rescore_ngram_scale", "lm_precision")
    add_flags(search, DecodeConfig, only=("decoding_method", *models, *rescoring))
    add_flags(search, SearchConfig)
    if precisions:
        add_flags(parser.add_argument_group("speakers"), LhucConfig)
    data = parser.add_argument_group("data")
    add_flags(
        data,
        DecodeConfig,
        only=("manifest_dir", "max_duration", "num_workers", "on_the_fly_feats", "allow_commands", "cer"),
    )
    data.add_argument("--wav", type=Path, nargs="+", metavar="FILE", help="transcribe audio files: FILE<tab>words")
    data.add_argument("-j", "--num-jobs", type=int, default=1, help="processes that share a test set, one GPU each")
    data.add_argument("--quiet", action="store_true", help="no progress bar")
    add_flags(data, DecodeConfig, only=("num_threads",))


class _NoteThatGiven(argparse.Action):
    """Stores the value, and that it was given."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)
        namespace.exp_dir_given = True


def read_decoding_flags(args: argparse.Namespace) -> DecodeConfig:
    """Which model is run at which precisions, and what is searched how.

    Raises:
      UserError: a value that a field cannot take; the line names the flag.
    """
    choice = read_flags(CheckpointChoice, args)
    packed = getattr(args, "packed", None)
    if packed is not None and not getattr(args, "exp_dir_given", False):
        choice = replace(choice, exp_dir=packed.parent)
    return read_flags(
        DecodeConfig,
        args,
        choice=choice,
        search=read_flags(SearchConfig, args),
        chunking=read_flags(ChunkConfig, args),
        lhuc=read_flags(LhucConfig, args),
        **_present(args, precision=tuple, num_jobs=int, quiet=bool),
        plugins=tuple(args.plugin),
    )


def _present(args: argparse.Namespace, **kinds: Any) -> dict[str, Any]:
    """Values of flags that are made by hand above."""
    return {name: kind(getattr(args, name)) for name, kind in kinds.items() if hasattr(args, name)}


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that `read_export_flags` reads; names as icefall's where it has them."""
    model = parser.add_argument_group("model")
    add_plugin_argument(model)
    add_flags(model, CheckpointChoice)
    model.add_argument("--precision", required=True, help=PRECISIONS)
    written = ("format", "onnx_type", "output", "compress", "save_pretrained", "float_output")
    add_flags(parser.add_argument_group("output"), ExportConfig, only=written)
    add_flags(
        parser.add_argument_group("BatchNorm"), ExportConfig, only=("recalibrate_bn", "manifest_dir", "max_duration")
    )


def read_export_flags(args: argparse.Namespace) -> ExportConfig:
    """What is written, and of which checkpoints.

    Raises:
      UserError: a value that a field cannot take; the line names the flag.
    """
    return read_flags(ExportConfig, args, choice=read_flags(CheckpointChoice, args))


def decoding_errors() -> Any:
    """Context in which errors about fields of decoding and export settings name their flags."""
    return errors_name_flags(
        [(cls, "") for cls in (DecodeConfig, ChunkConfig, CheckpointChoice, SearchConfig, LhucConfig, ExportConfig)]
    )
