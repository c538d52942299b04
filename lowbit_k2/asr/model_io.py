"""From an experiment folder to a model that decodes: everything needed is in the checkpoint."""

from __future__ import annotations

import argparse
import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lowbit_k2.data.flags import str2bool
from lowbit_k2.data.tokenizer import Tokenizer, tokenizer_from_bytes
from lowbit_k2.errors import UserError
from lowbit_k2.export import load_packed_model
from lowbit_k2.models import ModelConfig, config_from_dict, make_model
from lowbit_k2.quant import (
    QuantConfig,
    QuantReport,
    layer_assignment,
    parse_precision,
    quantize_model,
    rederive_scales,
)
from lowbit_k2.train.checkpoint import Checkpoint, load_checkpoint, load_model_state, numbered, select_checkpoint

PRETRAINED = "pretrained.pt"  # the averaged latent weights, as one checkpoint


@dataclass
class LoadedModel:
    """A model in eval mode with what belongs to it."""

    model: nn.Module
    model_config: ModelConfig
    quant_config: QuantConfig | None  # None for a model that was read from a packed file
    tokenizer: Tokenizer
    features: dict[str, Any]  # FeatureConfig.to_dict()
    report: QuantReport | None = None
    meta: dict[str, Any] | None = None  # the checkpoint's, or what the packed file says of its origin

    @property
    def trained_precisions(self) -> tuple[int, ...]:
        """Highest first; (32,) for a float model."""
        return (self.quant_config and self.quant_config.switched_precisions) or (32,)


def add_checkpoint_arguments(group: argparse._ArgumentGroup) -> None:
    """Which checkpoints decode.py and export.py take."""
    group.add_argument("--exp-dir", type=Path, default=Path("exp"), help="the folder that train.py wrote")
    group.add_argument("--epoch", type=int, default=0, help="epoch-N.pt; 0: the newest")
    group.add_argument("--iter", type=int, default=0, help="if positive, checkpoint-N.pt instead of an epoch")
    group.add_argument("--avg", type=int, default=1, help="how many checkpoints to average")
    group.add_argument("--use-averaged-model", type=str2bool, default=False, help="average over all updates between")
    group.add_argument("--checkpoint", type=Path, help=f"this file instead of those, such as export.py's {PRETRAINED}")


def build_model(model_config: ModelConfig, quant_config: QuantConfig) -> tuple[nn.Module, QuantReport]:
    """The architecture with quantizers on the tensors that `quant_config` names."""
    model = make_model(model_config)
    return model, quantize_model(model, quant_config)


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, str]:
    """The tokenizer as JSON; `restore_tokenizer` turns it back."""
    return {"kind": tokenizer.kind, "bytes": base64.b64encode(tokenizer.to_bytes()).decode("ascii")}


def restore_tokenizer(description: dict[str, str]) -> Tokenizer:
    return tokenizer_from_bytes(description["kind"], base64.b64decode(description["bytes"]))


def load_trained(
    exp_dir: Path, epoch: int = 0, iter_: int = 0, avg: int = 1, use_averaged_model: bool = False
) -> LoadedModel:
    """Load (and average) checkpoints; configurations, tokens and feature settings come from the checkpoint.

    Args:
      exp_dir: the folder that train.py wrote.
      epoch: `epoch-N.pt`; 0 is the newest.
      iter_: if positive, `checkpoint-N.pt` instead.
      avg: how many checkpoints to average; latent weights and alphas are averaged, never codes.
      use_averaged_model: the mean over all updates between the checkpoints instead of the mean of checkpoints.

    Raises:
      UserError: no such checkpoint, or one that is damaged or from another version.
    """
    return restore(select_checkpoint(Path(exp_dir), epoch, iter_, avg, use_averaged_model), exp_dir)


def restore(checkpoint: Checkpoint, source: Path) -> LoadedModel:
    """The model of a checkpoint; `source` is named in errors.

    Raises:
      UserError: the checkpoint is of another version.
    """
    meta = checkpoint.meta
    try:
        model_config = config_from_dict(meta["model"])
        quant_config = QuantConfig.from_dict(meta["quant"])
        tokenizer = restore_tokenizer(meta["tokenizer"])
        features = meta["features"]
    except KeyError as error:
        raise UserError(f"{source} lacks {error}: train again") from None
    model, report = build_model(model_config, quant_config)
    load_model_state(model, checkpoint.model, source)
    rederive_scales(model)
    model.eval()
    return LoadedModel(model, model_config, quant_config, tokenizer, features, report, meta)


def load_chosen(args: argparse.Namespace) -> tuple[LoadedModel, str]:
    """The model that the flags of `add_checkpoint_arguments` name, and what files and logs call it.

    Raises:
      UserError: see `load_trained`.
    """
    if args.checkpoint is not None:
        if args.epoch or args.iter or args.avg != 1 or args.use_averaged_model:
            raise UserError("--checkpoint names one file: leave out --epoch, --iter, --avg and --use-averaged-model")
        return restore(load_checkpoint(args.checkpoint), args.checkpoint), args.checkpoint.stem
    loaded = load_trained(args.exp_dir, args.epoch, args.iter, args.avg, args.use_averaged_model)
    name = f"iter-{args.iter}" if args.iter > 0 else f"epoch-{args.epoch or numbered(args.exp_dir, 'epoch')[-1]}"
    averaged = "-use-averaged-model" if args.use_averaged_model else ""
    return loaded, f"{name}-avg-{args.avg}{averaged}"


def load_packed(path: str | Path) -> LoadedModel:
    """A packed file as the scripts know models: no quantizers, `quant_config` None.

    Raises:
      PackedFileError, UserError: the file is missing, damaged, foreign, or does not fit this version.
    """
    found = load_packed_model(path)
    packed = found.packed
    try:
        tokenizer = tokenizer_from_bytes(packed.tokens_kind, packed.tokens)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return LoadedModel(
        found.model, found.model_config, None, tokenizer, dict(packed.features), None, dict(packed.extra)
    )


def precision_assignment(text: str, loaded: LoadedModel) -> int | dict[str, int]:
    """What `--precision TEXT` means for this model; the argument of `use_precision`.

    Raises:
      UserError: not a precision, or one that was never trained (the latent weights alone are no float model).
    """
    assert loaded.quant_config is not None, "a packed file has its precision"
    bits = parse_precision(text, loaded.model_config.num_layers)
    trained = loaded.trained_precisions
    untrained = [b for b in ([bits] if isinstance(bits, int) else bits) if b not in trained]
    if untrained:
        known = ", ".join(str(b) for b in trained)
        raise UserError(f"--precision {text}: the model was never trained at {untrained[0]} bits, only at {known}")
    return bits if isinstance(bits, int) else layer_assignment(loaded.quant_config, bits)
