"""Small random models, exported as packed files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lowbit_k2.core.encodings import ENCODINGS
from lowbit_k2.export import pack_model
from lowbit_k2.models import CtcConfig, make_model
from lowbit_k2.packed import PackedModel, PackedTensor
from lowbit_k2.quant import QuantConfig, TensorScheme, quantize_model

SIZES = dict(
    num_features=20, d_model=24, num_layers=2, num_heads=4, ffn_dim=(40, 56), conv_kernel=7, subsampling_channels=10
)


def random_model(quant: QuantConfig, kind: type = CtcConfig, vocab_size: int = 30, **sizes: Any) -> torch.nn.Module:
    """With running statistics and biases that matter; a Conformer, unless `sizes` has another encoder."""
    torch.manual_seed(5)
    if "encoder" in sizes:
        config = kind(vocab_size=vocab_size, **sizes)
    else:
        config = kind.preset("demo", vocab_size=vocab_size, **{**SIZES, **sizes})
    model = make_model(config, for_training=False).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.dim() == 1:
                value.uniform_(0.5, 1.5) if name.endswith(("var", "weight")) else value.normal_(0, 0.3)
    quantize_model(model, quant)
    return model.eval()


def export(
    model: torch.nn.Module, path: Path, pack=pack_model, tokenizer: Any = None, features: dict[str, Any] | None = None
) -> Path:
    tokenizer = tokenizer or SimpleNamespace(kind="none", to_bytes=lambda: b"")
    what = SimpleNamespace(model=model, model_config=model.config, tokenizer=tokenizer, features=features or {})
    pack(what, path)
    return path


def schemes(**fields: Any) -> QuantConfig:
    """All matrices and convolutions alike."""
    roles = ("encoder_linear", "attention", "linear", "convolution", "subsampling", "output")
    return QuantConfig("test", {role: TensorScheme(**fields) for role in roles})


def with_rare_codes(model: PackedModel) -> PackedModel:
    """Codes of even grids drawn anew, most of them around zero as in a trained model: worth coding."""
    rng = np.random.default_rng(0)

    def peaked(t: PackedTensor) -> PackedTensor:
        codes = np.clip(np.rint(rng.normal(size=t.shape)), *ENCODINGS[t.encoding].codes).astype(np.int8)
        return PackedTensor.from_codes(t.name, t.role, t.encoding, codes, t.step, t.granularity, aliases=t.aliases)

    return replace(model, tensors=[t if t.is_float else peaked(t) for t in model.tensors])
