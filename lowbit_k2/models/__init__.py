"""Acoustic models in plain float PyTorch; `lowbit_k2.quant` turns their weights into few bits from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lowbit_k2.errors import UserError
from lowbit_k2.models.conformer import ConformerConfig, ConformerCtc
from lowbit_k2.models.transducer import ConformerTransducer, TransducerConfig

__all__ = [
    "ConformerConfig",
    "ConformerCtc",
    "ConformerTransducer",
    "ModelConfig",
    "TransducerConfig",
    "config_from_dict",
    "make_model",
]

ModelConfig = ConformerConfig | TransducerConfig


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The configuration that `to_dict` described; the key `kind` tells a transducer from a CTC model, which has none.

    Raises:
      UserError: unknown kind, or unknown, missing or wrong fields.
    """
    fields = dict(values)
    kind = fields.pop("kind", "ctc")
    if kind == "ctc":
        return ConformerConfig.from_dict(fields)
    if kind == "transducer":
        return TransducerConfig.from_dict(fields)
    raise UserError(f"model config: kind {kind!r} is unknown, this version has ctc and transducer")


def make_model(config: ModelConfig, for_training: bool = True) -> nn.Module:
    """The float model of a configuration, freshly initialised.

    Args:
      for_training: with the parts that only training needs (`training_only` of the model's class).
    """
    if isinstance(config, TransducerConfig):
        return ConformerTransducer(config, for_training)
    return ConformerCtc(config)
