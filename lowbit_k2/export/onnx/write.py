"""Torch model -> ONNX files and tokens.txt, under the precisions that are active in the model."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lowbit_k2.core.models import ModelConfig
from lowbit_k2.export.load import restore_packed
from lowbit_k2.export.onnx.nbits import carry_codes
from lowbit_k2.export.onnx.networks import Network, check_model, networks_of
from lowbit_k2.export.pack import Exportable, packed_model
from lowbit_k2.fileio import atomic_write
from lowbit_k2.onnx_packages import require

OPSET = 17  # the newest that torch 1.13 writes; it has LayerNormalization
ONNX_TYPES = ("float", "int8", "4bit", "2bit")
QUANTIZATION = "onnxruntime.quantization"
WORD_START = "▁"  # sherpa-onnx puts a space in its place
BLANK = "<blk>"


def check_onnx(config: ModelConfig, kind: str) -> None:
    """Whether the files can be made, before long work.

    Raises:
      ConfigError: a model that sherpa-onnx does not take.
      UserError: a package is not installed.
    """
    check_model(config)
    require("onnx")
    if kind == "int8":
        require(QUANTIZATION)


def export_onnx(
    loaded: Exportable, folder: str | Path, kind: str = "float", notes: Mapping[str, str] | None = None
) -> list[Path]:
    """Write the files of a model under its current assignment, and tokens.txt; call it within `use_precision`.

    The weights are those that the quantized model computes with.

    Args:
      loaded: the model with its configuration, tokenizer and feature settings.
      folder: made where it is missing. Files are named model.onnx, or encoder.onnx, decoder.onnx and joiner.onnx; those
        of another `kind` than "float" model.int8.onnx and so on.
      kind: "float": float32. "int8": matrices rounded to 8 bits, and their inputs as they come, by onnxruntime's
        quantize_dynamic. "4bit", "2bit": codes in MatMulNBits of at least so many bits, and inputs in float32.
      notes: metadata on the origin.

    Returns:
      What was written, tokens.txt last.
    Raises:
      UserError: a model that sherpa-onnx does not take, a package is not installed, or a weight cannot be exported.
    """
    assert kind in ONNX_TYPES, kind
    check_onnx(loaded.model_config, kind)
    packed = packed_model(loaded)
    plain = restore_packed(packed)
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for network in networks_of(plain.model, plain.model_config, loaded.features):
        model = trace(network)
        if kind == "int8":
            model = quantize_int8(model)
        elif kind != "float":
            carry_codes(model, packed.tensors, least_bits=int(kind[0]))
        add_metadata(model, {**network.metadata, **(notes or {}), "weights": kind})
        path = Path(folder) / (f"{network.name}.onnx" if kind == "float" else f"{network.name}.{kind}.onnx")
        with atomic_write(path) as temporary:
            temporary.write_bytes(model.SerializeToString())
        written.append(path)
    tokens = Path(folder) / "tokens.txt"
    with atomic_write(tokens) as temporary:
        temporary.write_text("".join(token_lines(loaded)), encoding="utf-8")
    return [*written, tokens]


def trace(network: Network) -> Any:
    """An `onnx.ModelProto` of one network, with float weights."""
    onnx = require("onnx")
    # torch 2.9 and newer would take another exporter, which needs onnxscript
    exporter = {} if torch.__version__.startswith("1.") else {"dynamo": False}
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of asserts on lengths, and that the exporter by tracing is the older one
        torch.onnx.export(
            network.module.eval(),
            network.example,
            file,
            opset_version=OPSET,
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            dynamic_axes={**network.inputs, **network.outputs},
            **exporter,
        )
    return onnx.load_from_string(file.getvalue())


def quantize_int8(model: Any) -> Any:
    """Matrices in 7 of 8 bits with a scale per output, inputs rounded as they come, one scale a call.

    At the full range of 8 bits onnxruntime's kernels for CPUs without VNNI overflow and words change, above all with
    weights of few bits, which are all at the end of it. Up to 2 bits are exact in 7.
    """
    quantization = require(QUANTIZATION)
    file = io.BytesIO()
    with _quiet_root():
        quantization.quantize_dynamic(
            model,
            file,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
        )
    return require("onnx").load_from_string(file.getvalue())


@contextmanager
def _quiet_root() -> Iterator[None]:
    """onnxruntime advises its own preparation by the root logger, which traced and folded graphs do not need."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def add_metadata(model: Any, metadata: Mapping[str, str]) -> None:
    """Put `metadata` in place of what the model has."""
    del model.metadata_props[:]
    require("onnx").helper.set_model_props(model, dict(metadata))


def token_lines(loaded: Exportable) -> Iterator[str]:
    """`SYMBOL ID` of each token. Phones are marked as beginnings of words: sherpa-onnx then parts them by spaces."""
    mark = "" if loaded.tokenizer.spells_words else WORD_START
    for i, piece in enumerate(loaded.tokenizer.pieces()):
        yield f"{piece if piece == BLANK else mark + piece} {i}\n"
