"""A small quantized Conformer whose scales have moved from where they start, as after training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from lowbit_k2.data.tokenizer import LexiconTokenizer
from lowbit_k2.models import ConformerConfig, CtcConfig, make_model
from lowbit_k2.quant import QuantConfig, alpha_parameters, quantize_model

ENCODER = ConformerConfig(num_features=23, d_model=24, num_layers=4, ffn_dim=72, conv_kernel=5, subsampling_channels=8)
CONFIG = CtcConfig(ENCODER, vocab_size=7)
TOKENS = {"<blk>": 0, **{letter: i + 1 for i, letter in enumerate("abcdef")}}


def toy_tokenizer() -> LexiconTokenizer:
    return LexiconTokenizer(TOKENS, [("word", ("a", "b")), ("b", ("b",))])


@dataclass
class Toy:
    """What packing needs of a model."""

    model: nn.Module
    model_config: CtcConfig = CONFIG
    tokenizer: LexiconTokenizer = field(default_factory=toy_tokenizer)
    features: dict[str, Any] = field(default_factory=lambda: {"type": "fbank", "num_mel_bins": 23})


def toy_model(preset: str = "lossless16", seed: int = 0, precisions=(2, 1), conv_norm="batch", **options: Any) -> Toy:
    """A quantized model in eval mode, with random alphas, biases and BatchNorm statistics."""
    torch.manual_seed(seed)
    config = CtcConfig(replace(ENCODER, conv_norm=conv_norm), CONFIG.vocab_size)
    model = make_model(config)
    quantize_model(model, QuantConfig.preset(preset, precisions=precisions, **options))
    with torch.no_grad():
        for alpha in alpha_parameters(model):
            alpha.uniform_(0.5, 1.5)
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "bias.original")):
                parameter.normal_(std=0.1)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return Toy(model.eval(), config)


def toy_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 61, 23, generator=generator), torch.tensor([61, 40, 55])
