"""Named allocations of bits.

float       everything float32: the baseline.
paper       as the code of arXiv 2505.21245: feed-forward and attention matrices switched, the convolution module
            4 bits with a running absmax, all else float32. The float leftovers keep the whole model large (9x).
lossless16  the same, with the leftover matrices (subsampling, output layer, what a transducer has besides) at 8 bits
            and norms and biases in fp16; scales per channel at 4 and 8 bits.
all-low     every matrix at 4 bits or fewer, norms and biases in fp16; scales per channel at 4 bits.
mixed       every matrix at any of the precisions, for allocations that tell them apart; what `lossless16` holds at 4 or
            8 bits has scales per channel, norms and biases are in fp16.

Three schemes of arXiv 2301.00652 quantize activations, too, on grids that are learned; all that stays is in fp16:

bit-l       BiT's elastic quantizer on the switched matrices and on what goes into them, at the same precision
bit-la      the same on both operands of attention's two products (`MatrixProduct`) as well
sqwq        squashed weights with gains, dynamic inputs of 8 bits

How much smaller that makes a model depends on how much of it is switched: `train.py --dry-run` tells for each preset.

Of a language model, attention, feed-forward and LSTM matrices are switched, embedding and output are leftovers. In
other models the rules by kind of module do the same: every Linear is switched, convolutions take 4 bits, embeddings
are leftovers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lowbit_k2.errors import UserError
from lowbit_k2.quant.config import ELASTIC, SAME, SWITCHED_ROLES, QuantConfig, TensorScheme, low_bits
from lowbit_k2.quant.quantizer import quantizer_class

PRESETS = ("float", "paper", "lossless16", "all-low", "mixed")
ACTIVATION_PRESETS = ("bit-l", "bit-la", "sqwq")
SWITCHED_OPTIONS = ("scale", "granularity", "quantizer", "input_bits", "input_quantizer")
FLOAT_INPUTS = (0, 16)  # bits of activations that no learned grid is for
PRODUCT = "product"
LEFTOVER_MATRICES = ("subsampling", "embedding", "decoder", "joiner", "output")


_ELASTIC = {"quantizer": "elastic", "input_bits": SAME, "input_quantizer": ELASTIC}
_ACTIVATION_OPTIONS = {
    "bit-l": _ELASTIC,
    "bit-la": _ELASTIC,
    "sqwq": {"quantizer": "squashed", "granularity": "channel", "input_bits": 8},
}


def preset_quantizer(name: str) -> str:
    """Name of the quantizer of a preset's switched roles, where nobody chooses another."""
    return _ACTIVATION_OPTIONS.get(name, {}).get("quantizer", TensorScheme.quantizer)


def build_preset(name: str, precisions: tuple[int, ...], overrides: Mapping[str, Any]) -> QuantConfig:
    """The body of `QuantConfig.preset`."""
    overrides = dict(overrides)
    options = _ACTIVATION_OPTIONS.get(name, {}) | {o: overrides.pop(o) for o in SWITCHED_OPTIONS if o in overrides}
    if options.get("input_bits") in FLOAT_INPUTS:
        options.pop("input_quantizer", None)
    switched = TensorScheme(precisions, **options)
    schemes = {role: _in_kind(scheme, switched) for role, scheme in _schemes(name, switched).items()}
    schemes |= overrides.pop("schemes", {})
    if name == "mixed":
        overrides.setdefault("switched_roles", (*SWITCHED_ROLES, "convolution", *LEFTOVER_MATRICES))
    if name == "bit-la":
        overrides.setdefault("switched_roles", (*SWITCHED_ROLES, PRODUCT))
    try:
        return QuantConfig(name=name, schemes=schemes, **overrides)
    except TypeError:
        raise UserError(f"unknown quantization option among {', '.join(sorted(overrides))}") from None


def _in_kind(scheme: TensorScheme, switched: TensorScheme) -> TensorScheme:
    """The scheme with the quantizer of the switched roles, and their scale where another quantizer's says nothing."""
    if scheme.quantizer == switched.quantizer or not low_bits(scheme.bits):
        return scheme
    known = quantizer_class(switched.quantizer).granularities
    granularity = scheme.granularity if scheme.granularity in known else switched.granularity
    return replace(scheme, quantizer=switched.quantizer, scale=switched.scale, granularity=granularity)


def _by_channel(scheme: TensorScheme) -> TensorScheme:
    """With scales per channel, where its quantizer has such."""
    known = quantizer_class(scheme.quantizer).granularities
    return replace(scheme, granularity="channel") if "channel" in known else scheme


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
            **dict.fromkeys(("convolution", *LEFTOVER_MATRICES), _by_channel(switched)),
            **half,
        },
    }
    with_activations = {**dict.fromkeys(SWITCHED_ROLES, switched), **half}
    with_activations |= dict.fromkeys(("convolution", *LEFTOVER_MATRICES), TensorScheme((16,)))
    presets |= dict.fromkeys(ACTIVATION_PRESETS, with_activations)
    if name == "bit-la":
        presets[name] = {**with_activations, PRODUCT: switched}
    if name not in presets:
        raise UserError(f"quantization preset {name!r} is unknown: choose one of {', '.join(presets)}")
    return presets[name]
