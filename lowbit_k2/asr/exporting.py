"""What every export.py does: average checkpoints, quantize, write the packed file, and measure it on disk.

With `format` "onnx" it writes files for sherpa-onnx and onnxruntime instead.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit_k2 import __version__
from lowbit_k2.asr.model_io import (
    PRETRAINED,
    CheckpointChoice,
    LoadedModel,
    load_trained,
    parse_allocation,
    precision_in_names,
)
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import read_feature_config
from lowbit_k2.data.filter import FilterConfig, filter_cuts
from lowbit_k2.errors import UserError
from lowbit_k2.export import export_float, pack_model
from lowbit_k2.export.onnx import ONNX_TYPES, check_onnx, export_onnx
from lowbit_k2.packed import SizeTable, read_packed, size_table
from lowbit_k2.progress import progress_bar
from lowbit_k2.quant import use_precision
from lowbit_k2.train.batchnorm import recalibrate
from lowbit_k2.train.checkpoint import Checkpoint, save_checkpoint

if TYPE_CHECKING:
    from lhotse import CutSet

PACKED, ONNX = FORMATS = ("packed", "onnx")
TRAINING_STATE = ("progress", "scaler")  # of a checkpoint's meta, what only a training run has use for


@dataclass(frozen=True)
class ExportConfig(Config):
    """What is written, and of which checkpoints."""

    choice: CheckpointChoice = option(CheckpointChoice, flag="")
    precision: str = option("1", "1, 2, 1.5, 1.5r, 32, one per layer as 1,1,2,2, or a file with an allocation")
    format: str = option(
        "packed", "packed: this project's file; onnx: for sherpa-onnx and onnxruntime", choices=FORMATS
    )
    onnx_type: str = option(
        "float", "weights in ONNX: float32, int8 with inputs in 8 bits, or codes in 4 or 2 bits", choices=ONNX_TYPES
    )
    output: Path | None = option(
        None, "the packed file; default: EXP_DIR/pretrained-1bit.safetensors or the like; with onnx a folder"
    )
    compress: bool = option(False, "code frequent weights in fewer bits, where that saves over a tenth of a tensor")
    save_pretrained: bool = option(
        False, f"also EXP_DIR/{PRETRAINED}: the averaged latent weights, which --checkpoint takes"
    )
    float_output: Path | None = option(None, "keep the float32 file that the ratio is measured with")
    recalibrate_bn: int = option(0, "BatchNorm statistics anew from N training batches; 0: as trained", low=0)
    manifest_dir: Path = option(Path("data/fbank"), "training cuts and features, for --recalibrate-bn")
    max_duration: float = option(200.0, "seconds in such a batch", above=0)

    @property
    def output_path(self) -> Path:
        """Where the packed file goes, or the folder with ONNX files."""
        name = precision_in_names(self.precision)
        default = f"onnx-{name}" if self.format == ONNX else f"pretrained-{name}.safetensors"
        return self.output or self.choice.exp_dir / default

    def check(self) -> None:
        if self.format != ONNX and self.onnx_type != "float":
            raise ConfigError("onnx_type", f"{self.onnx_type} is for ONNX: add --format onnx")
        for name in ("compress", "float_output"):
            if self.format == ONNX and getattr(self, name):
                raise ConfigError(name, "is for packed files: leave it out with --format onnx")


def run_export(config: ExportConfig, load_train_cuts: Callable[[], CutSet]) -> SizeTable | None:
    """Average, quantize, write, measure, print.

    Args:
      load_train_cuts: training cuts; called only for `recalibrate_bn`.

    Returns:
      The measured sizes of a packed file, with the ratio to the float32 file; None of ONNX files.
    Raises:
      UserError, PackedFileError: one line each; no file is left half-written, no checkpoint overwritten.
    """
    check_outputs(config)
    loaded, label = load_trained(config.choice)
    allocation = parse_allocation(config.precision, loaded)
    if config.format == ONNX:
        check_onnx(loaded.model_config, config.onnx_type)
    output = config.output_path
    origin = describe_origin(config.precision, label, loaded)
    if config.save_pretrained:
        save_pretrained(config.choice.exp_dir / PRETRAINED, loaded)
    with use_precision(loaded.model, allocation):
        if config.recalibrate_bn:
            batches = calibration_batches(config, loaded, load_train_cuts())
            origin["recalibrated_batches"] = recalibrate(loaded.model, batches)
        if config.format == ONNX:
            report_onnx(export_onnx(loaded, output, config.onnx_type, origin_notes(origin)), loaded)
            return None
        pack_model(loaded, output, origin, config.compress)
    is_model = set(allocation.bits.values()) == {FLOAT_BITS}
    table = measure(loaded, output, config.float_output, {**origin, "precision": "32"}, is_model)
    print(f"{output}: {config.precision} bit, from {origin['checkpoint']}")
    print(table)
    return table


def check_outputs(config: ExportConfig) -> None:
    """What is written is neither what is read nor written twice.

    Raises:
      ConfigError: one of these.
    """
    outputs = {"output": config.output_path, "float_output": config.float_output}
    outputs["save_pretrained"] = config.choice.exp_dir / PRETRAINED if config.save_pretrained else None
    inputs = {path.resolve() for path in config.choice.exp_dir.glob("*.pt") if path.name != PRETRAINED}
    if config.choice.checkpoint is not None:
        inputs.add(config.choice.checkpoint.resolve())
    seen: dict[Path, str] = {}
    for name, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in inputs:
            raise ConfigError(name, f"{path} is a checkpoint, which would be lost: choose another path")
        if path.resolve() in seen:
            raise ConfigError(name, f"{path} is that of {seen[path.resolve()]}, too: choose another path")
        seen[path.resolve()] = name


def describe_origin(precision: str, label: str, loaded: LoadedModel) -> dict[str, Any]:
    """What `lowbit-k2 inspect` tells about how the file was made."""
    return {
        "precision": precision,
        "quant_config": loaded.quant_config.name,
        "checkpoint": label,
        "made_by": f"lowbit_k2 {__version__}",
    }


def origin_notes(origin: Mapping[str, Any]) -> dict[str, str]:
    """The same as metadata of ONNX files, which holds texts."""
    return {name: str(value) for name, value in origin.items()}


def report_onnx(files: Sequence[Path], loaded: LoadedModel) -> None:
    """Print what was written, and how sherpa-onnx is called with it."""
    for path in files:
        print(f"{path}: {path.stat().st_size:,} bytes")
    features = FeatureConfig.from_dict(loaded.features)
    flags = {"tokens": files[-1], "sample-rate": features.sampling_rate, "feat-dim": features.num_mel_bins}
    by_name = {path.name.partition(".")[0]: path for path in files}
    for names in (("model",), ("encoder", "decoder", "joiner")):
        if names[0] in by_name:
            named = {"zipformer-ctc-model" if name == "model" else name: by_name[name] for name in names}
            print("sherpa-onnx-offline", *(f"--{flag}={value}" for flag, value in {**named, **flags}.items()), "WAV...")
    foreign = [
        name
        for name in ("frame_length", "frame_shift", "low_freq", "high_freq")
        if getattr(features, name) != getattr(FeatureConfig(), name)
    ]
    if foreign:
        logging.warning("sherpa-onnx computes features with another %s than the model's", ", ".join(foreign))


def save_pretrained(path: Path, loaded: LoadedModel) -> None:
    """The latent weights and what belongs to them as one checkpoint, without the optimiser's state."""
    meta = {name: value for name, value in loaded.meta.items() if name not in TRAINING_STATE}
    save_checkpoint(path, Checkpoint(loaded.model.state_dict(), meta))
    print(f"{path}: latent weights, for --checkpoint")


def calibration_batches(config: ExportConfig, loaded: LoadedModel, cuts: CutSet) -> Iterable[Batch]:
    """The first N batches of a shuffled pass over the training cuts, not augmented."""
    features = FeatureConfig.from_dict(loaded.features)
    if read_feature_config(config.manifest_dir).stored() != features.stored():
        raise UserError(f"the features in {config.manifest_dir} are not those that the model was trained on")
    data = DataConfig(
        manifest_dir=config.manifest_dir,
        max_duration=config.max_duration,
        num_buckets=2,  # mixed lengths in a batch; padding is masked, and a few cuts suffice
        feature_normalize=features.normalize,
    )
    cuts, report = filter_cuts(
        cuts, loaded.tokenizer.encode, FilterConfig(loaded.model_config.output_lens, features=features)
    )
    logging.info("recalibration: %s", report)
    batches = AsrDataModule(data, features).train_batches(cuts, epoch=1)
    number = config.recalibrate_bn
    return progress_bar(islice(batches, number), "BatchNorm", total=number, leave=False)


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
