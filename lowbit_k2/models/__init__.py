"""Acoustic and language models in float PyTorch; `lowbit_k2.quant` turns their weights into few bits from outside.

Their settings are in `lowbit_k2.core`, in `encoders`, `models`, `lm`, `hubert` and `states`, which need no torch.
"""

from __future__ import annotations

from torch import nn

from lowbit_k2.core.config import load_named
from lowbit_k2.core.encoders import ConformerConfig, EncoderConfig
from lowbit_k2.core.hubert import HubertConfig, MaskedHubertConfig
from lowbit_k2.core.lm import LanguageModelConfig, LstmLmConfig, TransformerLmConfig
from lowbit_k2.core.models import CtcConfig, ModelConfig, TransducerConfig, model_config_from_dict
from lowbit_k2.core.states import StatesConfig

__all__ = [
    "ConformerConfig",
    "CtcConfig",
    "EncoderConfig",
    "HubertConfig",
    "LanguageModelConfig",
    "LstmLmConfig",
    "MaskedHubertConfig",
    "ModelConfig",
    "StatesConfig",
    "TransducerConfig",
    "TransformerLmConfig",
    "make_model",
    "model_config_from_dict",
]


def make_model(config: ModelConfig, for_training: bool = True) -> nn.Module:
    """The float model of a configuration, freshly initialised.

    Args:
      for_training: with the parts that only training needs (`training_only` of the model's class).
    """
    return load_named(config.build)(config, for_training)
