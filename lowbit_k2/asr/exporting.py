"""What every export.py does: average checkpoints, quantize, write the packed file, and measure it on disk."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lowbit_k2 import __version__
from lowbit_k2.asr.model_io import (
    PRETRAINED,
    LoadedModel,
    add_checkpoint_arguments,
    load_chosen,
    precision_assignment,
)
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import FeatureConfig, read_feature_config
from lowbit_k2.data.filter import FilterConfig, filter_cuts
from lowbit_k2.data.flags import str2bool
from lowbit_k2.errors import UserError
from lowbit_k2.export import export_float, pack_model
from lowbit_k2.packed import SizeTable, read_packed, size_table
from lowbit_k2.quant import use_precision
from lowbit_k2.train.batchnorm import recalibrate
from lowbit_k2.train.checkpoint import Checkpoint, save_checkpoint

if TYPE_CHECKING:
    from lhotse import CutSet

FLOAT = 32
TRAINING_STATE = ("progress", "scaler")  # of a checkpoint's meta, what only a training run has use for


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of export.py; names as icefall's where it has them."""
    model = parser.add_argument_group("model")
    add_checkpoint_arguments(model)
    model.add_argument("--precision", required=True, help="1, 2, 1.5, 1.5r, 32, or one per layer as 1,1,2,2")

    out = parser.add_argument_group("output")
    out.add_argument(
        "--output", type=Path, help="the packed file; default: EXP_DIR/pretrained-PRECISIONbit.safetensors"
    )
    out.add_argument(
        "--save-pretrained",
        type=str2bool,
        default=False,
        help=f"also EXP_DIR/{PRETRAINED}: the averaged latent weights, which --checkpoint takes",
    )
    out.add_argument("--float-output", type=Path, help="keep the float32 file that the ratio is measured with")

    norm = parser.add_argument_group("BatchNorm")
    norm.add_argument(
        "--recalibrate-bn",
        type=int,
        default=0,
        metavar="N",
        help="statistics anew from N training batches; 0: as trained",
    )
    norm.add_argument(
        "--manifest-dir", type=Path, default=Path("data/fbank"), help="training cuts and features, for that"
    )
    norm.add_argument("--max-duration", type=float, default=DataConfig.max_duration, help="seconds in such a batch")


def run_export(args: argparse.Namespace, load_train_cuts: Callable[[], CutSet]) -> SizeTable:
    """Average, quantize, write, measure, print.

    Args:
      args: flags of `add_export_arguments`.
      load_train_cuts: training cuts; called only for `--recalibrate-bn`.

    Returns:
      The measured sizes, with the ratio to the float32 file.
    Raises:
      UserError, PackedFileError: one line each; no file is left half-written.
    """
    if args.recalibrate_bn < 0:
        raise UserError(f"--recalibrate-bn {args.recalibrate_bn}: give a number of batches, or 0")
    loaded, label = load_chosen(args)
    assignment = precision_assignment(args.precision, loaded)
    output = args.output or args.exp_dir / f"pretrained-{args.precision.replace(',', '_')}bit.safetensors"
    origin = describe_origin(args.precision, label, loaded)
    if args.save_pretrained:
        save_pretrained(args.exp_dir / PRETRAINED, loaded)
    with use_precision(loaded.model, assignment):
        if args.recalibrate_bn:
            cuts = load_train_cuts()
            origin["recalibrated_batches"] = recalibrate(loaded.model, calibration_batches(args, loaded, cuts))
        pack_model(loaded, output, origin)
    table = measure(loaded, output, args.float_output, {**origin, "precision": "32"}, is_model=assignment == FLOAT)
    print(f"{output}: {args.precision} bit, from {origin['checkpoint']}")
    print(table)
    return table


def describe_origin(precision: str, label: str, loaded: LoadedModel) -> dict[str, Any]:
    """What `lowbit-k2 inspect` tells about how the file was made."""
    return {
        "precision": precision,
        "quant_config": loaded.quant_config.name,
        "checkpoint": label,
        "made_by": f"lowbit_k2 {__version__}",
    }


def save_pretrained(path: Path, loaded: LoadedModel) -> None:
    """The latent weights and what belongs to them as one checkpoint, without the optimiser's state."""
    meta = {name: value for name, value in loaded.meta.items() if name not in TRAINING_STATE}
    save_checkpoint(path, Checkpoint(loaded.model.state_dict(), meta))
    print(f"{path}: latent weights, for --checkpoint")


def calibration_batches(args: argparse.Namespace, loaded: LoadedModel, cuts: CutSet):
    """The first N batches of a shuffled pass over the training cuts, not augmented."""
    features = FeatureConfig.from_dict(loaded.features)
    if read_feature_config(args.manifest_dir).stored() != features.stored():
        raise UserError(f"the features in {args.manifest_dir} are not those that the model was trained on")
    config = DataConfig(
        manifest_dir=args.manifest_dir,
        max_duration=args.max_duration,
        num_buckets=2,  # mixed lengths in a batch; padding is masked, and a few cuts suffice
        feature_normalize=features.normalize,
    )
    cuts, report = filter_cuts(cuts, loaded.tokenizer.encode, FilterConfig(features=features))
    logging.info("recalibration: %s", report)
    batches = AsrDataModule(config, features).train_batches(cuts, epoch=1)
    return tqdm(islice(batches, args.recalibrate_bn), desc="BatchNorm", total=args.recalibrate_bn, leave=False)


def measure(
    loaded: LoadedModel, output: Path, float_output: Path | None, origin: dict[str, Any], is_model: bool
) -> SizeTable:
    """Sizes of `output` beside the float32 file, which is written, measured, and kept if `float_output` names it.

    Args:
      is_model: the float32 weights are themselves a trained model; otherwise the file is marked as a mere measure.
    """
    extra = origin if is_model else {**origin, "reference": True}
    with tempfile.TemporaryDirectory(prefix="lowbit_k2-") as folder:
        path = float_output or Path(folder) / "float32.safetensors"
        export_float(loaded, path, extra)
        return size_table(read_packed(output), read_packed(path))
