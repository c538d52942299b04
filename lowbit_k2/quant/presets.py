"""Named allocations of bits.

float       everything float32: the baseline.
paper       as the code of arXiv 2505.21245: feed-forward and attention matrices switched, the convolution module
            4 bits with a running absmax, all else float32. The float leftovers keep the whole model large (9x).
lossless16  the same, with the leftover matrices (subsampling, output layer, what a transducer has besides) at 8 bits
            and norms and biases in fp16; scales per channel at 4 and 8 bits.
all-low     every matrix at 4 bits or fewer, norms and biases in fp16; scales per channel at 4 bits.
mixed       every matrix at any of the precisions, for allocations that tell them apart; what `lossless16` holds at 4 or
            8 bits has scales per channel, norms and biases are in fp16.

How much smaller that makes a model depends on how much of it is switched: `train.py --dry-run` tells for each preset.

In other models the rules by kind of module do the same: every Linear is switched, convolutions take 4 bits, embeddings
are leftovers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lowbit_k2.errors import UserError
from lowbit_k2.quant.config import SWITCHED_ROLES, QuantConfig, TensorScheme

PRESETS = ("float", "paper", "lossless16", "all-low", "mixed")
LEFTOVER_MATRICES = ("subsampling", "embedding", "decoder", "joiner", "output")


def build_preset(name: str, precisions: tuple[int, ...], overrides: Mapping[str, Any]) -> QuantConfig:
    """The body of `QuantConfig.preset`."""
    overrides = dict(overrides)
    switched = TensorScheme(
        precisions,
        scale=overrides.pop("scale", "2std-clipped"),
        granularity=overrides.pop("granularity", "tensor"),
    )
    schemes = {**_schemes(name, switched), **overrides.pop("schemes", {})}
    if name == "mixed":
        overrides.setdefault("switched_roles", (*SWITCHED_ROLES, "convolution", *LEFTOVER_MATRICES))
    try:
        return QuantConfig(name=name, schemes=schemes, **overrides)
    except TypeError:
        raise UserError(f"unknown quantization option among {', '.join(sorted(overrides))}") from None


def _schemes(name: str, switched: TensorScheme) -> dict[str, TensorScheme]:
    paper = {**dict.fromkeys(SWITCHED_ROLES, switched), "convolution": TensorScheme((4,), "running-absmax")}
    # One step per channel costs half a percent of a large model's file; it is reported to have brought a model with
    # 8-bit weights from 7.57% WER to 4.83%.
    by_channel = {bits: TensorScheme((bits,), "running-absmax", "channel") for bits in (4, 8)}
    low = {**dict.fromkeys(SWITCHED_ROLES, switched), "convolution": by_channel[4]}
    half = dict.fromkeys(("norm", "bias"), TensorScheme((16,)))
    presets = {
        "float": {},
        "paper": paper,
        "lossless16": {**low, **dict.fromkeys(LEFTOVER_MATRICES, by_channel[8]), **half},
        "all-low": {**low, **dict.fromkeys(LEFTOVER_MATRICES, by_channel[4]), **half},
        "mixed": {
            **dict.fromkeys(SWITCHED_ROLES, switched),
            **dict.fromkeys(("convolution", *LEFTOVER_MATRICES), replace(switched, granularity="channel")),
            **half,
        },
    }
    if name not in presets:
        raise UserError(f"quantization preset {name!r} is unknown: choose one of {', '.join(PRESETS)}")
    return presets[name]
