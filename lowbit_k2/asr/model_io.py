"""From an experiment folder to a model that decodes: everything needed is in the checkpoint."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.models import check_shapes
from lowbit_k2.data.tokenizer import Tokenizer, tokenizer_from_bytes
from lowbit_k2.errors import UserError
from lowbit_k2.export import load_packed_model
from lowbit_k2.models import ModelConfig, make_model, model_config_from_dict
from lowbit_k2.quant import (
    Allocation,
    QuantConfig,
    QuantReport,
    plain_name,
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
    features: dict[str, Any]  # FeatureConfig.to_dict(); empty for a model that reads text or samples
    report: QuantReport | None = None
    meta: dict[str, Any] | None = None  # the checkpoint's, or what the packed file says of its origin

    @property
    def trained_precisions(self) -> tuple[int, ...]:
        """For the whole model alike, highest first; (32,) for a float model, () for one trained at allocations only."""
        held = (self.quant_config and self.quant_config.switched_precisions) or (32,)
        if not self.allocations:
            return held
        named = (self.meta or {})["co_training"]["precisions"]
        return tuple(bits for bits in held if str(bits) in named)

    @cached_property
    def allocations(self) -> dict[str, Allocation]:
        """Those that it was trained at, by name."""
        return {name: Allocation.from_dict(value) for name, value in (self.meta or {}).get("allocations", {}).items()}

    @property
    def usual_precision(self) -> str:
        """What `--precision` is by default: the highest one."""
        return str(self.trained_precisions[0]) if self.trained_precisions else next(iter(self.allocations))


@dataclass(frozen=True)
class CheckpointChoice(Config):
    """Which checkpoints decode.py and export.py take; latent weights and alphas are averaged, never codes."""

    exp_dir: Path = option(Path("exp"), "the folder that train.py wrote")
    epoch: int = option(0, "epoch-N.pt; 0: the newest", low=0)
    iter: int = option(0, "if positive, checkpoint-N.pt instead of an epoch", low=0)
    avg: int = option(1, "how many checkpoints to average", low=1)
    use_averaged_model: bool = option(False, "average over all updates between")
    checkpoint: Path | None = option(None, f"this file instead of those, such as export.py's {PRETRAINED}")

    def check(self) -> None:
        if self.checkpoint is not None and (self.epoch, self.iter, self.avg, self.use_averaged_model) != (
            0,
            0,
            1,
            False,
        ):
            raise ConfigError("checkpoint", "names one file: leave out epoch, iter, avg and use_averaged_model")


def build_model(model_config: ModelConfig, quant_config: QuantConfig) -> tuple[nn.Module, QuantReport]:
    """The architecture with quantizers on the tensors that `quant_config` names."""
    model = make_model(model_config)
    return model, quantize_model(model, quant_config)


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, str]:
    """The tokenizer as JSON; `restore_tokenizer` turns it back."""
    return {"kind": tokenizer.kind, "bytes": base64.b64encode(tokenizer.to_bytes()).decode("ascii")}


def restore_tokenizer(description: dict[str, str]) -> Tokenizer:
    """Inverse of `describe_tokenizer`.

    Raises:
      UserError: damaged.
    """
    try:
        kind, data = description["kind"], base64.b64decode(description["bytes"])
    except (KeyError, TypeError, ValueError):
        raise UserError("the tokenizer is damaged: use another file") from None
    return tokenizer_from_bytes(kind, data)


def check_units(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """A model that a search reads has a class for each token.

    Raises:
      UserError: it has not.
    """
    if config.networks and tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"it has {tokenizer.vocab_size} tokens, but {config.vocab_size} classes: make it again")


def read_features(config: ModelConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """The feature settings of a file; none where the model reads text or samples.

    Raises:
      UserError: they are not of this version.
    """
    return FeatureConfig.from_dict(values).to_dict() if config.num_features else {}


def restore(checkpoint: Checkpoint, source: Path) -> LoadedModel:
    """The model of a checkpoint; `source` is named in errors.

    Raises:
      UserError: the checkpoint is of another version.
    """
    meta = checkpoint.meta
    try:
        model_config = model_config_from_dict(meta["model"])
        quant_config = QuantConfig.from_dict(meta["quant"])
        tokenizer = restore_tokenizer(meta["tokenizer"])
        features = read_features(model_config, meta["features"])
        check_units(tokenizer, model_config)
    except KeyError as error:
        raise UserError(f"{source} lacks {error}: train again") from None
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    shapes = {plain_name(key): tuple(t.shape) for key, t in checkpoint.model.items() if t.is_floating_point()}
    shapes.pop(None, None)  # scales of quantizers
    try:
        check_shapes(model_config, shapes)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    model, report = build_model(model_config, quant_config)
    load_model_state(model, checkpoint.model, source)
    rederive_scales(model)
    model.eval()
    return LoadedModel(model, model_config, quant_config, tokenizer, features, report, meta)


def load_trained(choice: CheckpointChoice) -> tuple[LoadedModel, str]:
    """Load (and average) checkpoints; configurations, tokens and feature settings come from the checkpoint.

    Returns:
      The model, and what files and logs call it.

    Raises:
      UserError: no such checkpoint, or one that is damaged or from another version.
    """
    if choice.checkpoint is not None:
        return restore(load_checkpoint(choice.checkpoint), choice.checkpoint), choice.checkpoint.stem
    folder = choice.exp_dir
    selected = select_checkpoint(folder, choice.epoch, choice.iter, choice.avg, choice.use_averaged_model)
    name = f"iter-{choice.iter}" if choice.iter > 0 else f"epoch-{choice.epoch or numbered(folder, 'epoch')[-1]}"
    averaged = "-use-averaged-model" if choice.use_averaged_model else ""
    return restore(selected, folder), f"{name}-avg-{choice.avg}{averaged}"


def load_packed(path: str | Path) -> LoadedModel:
    """A packed file as the scripts know models: no quantizers, `quant_config` None.

    Raises:
      PackedFileError, UserError: the file is missing, damaged, foreign, or does not fit this version.
    """
    found = load_packed_model(path)
    packed = found.packed
    try:
        tokenizer = tokenizer_from_bytes(packed.tokens_kind, packed.tokens)
        check_units(tokenizer, found.model_config)
        features = read_features(found.model_config, packed.features)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return LoadedModel(found.model, found.model_config, None, tokenizer, features, None, dict(packed.extra))


def parse_allocation(text: str, loaded: LoadedModel) -> Allocation:
    """What `--precision TEXT` means for this model: bits, a mix by layers, or a file; see `Allocation.parse`.

    Raises:
      UserError: not a precision, or one that was never trained (the latent weights alone are no float model).
    """
    config = loaded.quant_config
    assert config is not None, "a packed file has its precision"
    if text in loaded.allocations:
        return loaded.allocations[text]
    try:
        allocation = Allocation.parse(text, loaded.model_config.num_layers, config.layer_prefix)
    except UserError as error:
        raise ConfigError("precision", str(error).removeprefix("precision ")) from None
    trained = loaded.trained_precisions
    known = {*trained, *((*fixed_precisions(config), *config.switched_precisions) if is_allocation_file(text) else ())}
    untrained = sorted(set(allocation.bits.values()) - known)
    if untrained:
        spelled = ", ".join([*map(str, trained), *loaded.allocations])
        raise ConfigError("precision", f"{text}: the model was never trained at {untrained[0]} bits, only at {spelled}")
    return allocation


def is_allocation_file(text: str) -> bool:
    """Whether `--precision` names a file rather than bits."""
    return "/" in text or text.endswith(".json")


def precision_in_names(text: str) -> str:
    """`--precision` as names of packed files have it: 1.5bit, 1_2bit, or an allocation's own name."""
    label = precision_label(text)
    return f"{label}bit" if label[0].isdigit() else label


def precision_label(text: str) -> str:
    """`--precision` as it stands in names of files."""
    return Path(text).stem if is_allocation_file(text) else text.replace(",", "_")


def fixed_precisions(config: QuantConfig) -> set[int]:
    """Precisions of the tensors that have only one."""
    return {scheme.bits[0] for scheme in config.schemes.values() if len(scheme.bits) == 1}
