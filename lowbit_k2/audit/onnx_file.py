"""Every byte of an ONNX file, by the wire format of protocol buffers: no package is needed.

A weight is an initializer, or a tensor in an attribute (of Constant nodes). Codes and what belongs to them are one
parameter: MatMulNBits (codes of 2, 4 or 8 bits, scales), and what onnxruntime's quantization makes (`NAME_quantized`,
`NAME_scale`, `NAME_zero_point`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lowbit_k2.audit.stored import CODES, PARAMETERS, FileAudit, StoredTensor, guess_role
from lowbit_k2.errors import UserError
from lowbit_k2.packed import PackedFileError, unpack
from lowbit_k2.quant.rules import NAME_RULES, match_role

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
GRAPH = 7  # of ModelProto
NODE, INITIALIZER = 1, 5  # of GraphProto
NODE_INPUT, NODE_NAME, OP_TYPE, ATTRIBUTE = 1, 3, 4, 5  # of NodeProto
ATTRIBUTE_NAME, INTEGER, TENSOR, SUBGRAPH, TENSORS, SUBGRAPHS = 1, 3, 5, 6, 10, 11  # of AttributeProto
DIMS, DATA_TYPE, TENSOR_NAME, LOCATION = 1, 2, 8, 14  # of TensorProto
PAYLOADS = (4, 5, 7, 9, 10, 11)  # of TensorProto: float_data, int32_data, int64_data, raw_data, ...
RAW = 9
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 10: "float16", 11: "float64", 16: "bfloat16", 21: "uint4", 22: "int4"}
QUANTIZED, BELONGING = "_quantized", ("_scale", "_zero_point")


class _Damaged(Exception):
    """Bytes that are no message."""


@dataclass
class _Tensor:
    """A tensor as the file has it; `size` in bytes with its description, `payload` of these its numbers."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    size: int
    payload: int
    raw: memoryview


@dataclass
class _Graph:
    """What all graphs of a file hold.

    uses: name of the first node that reads a tensor.
    nbits: (rows, columns, bits) of the codes of MatMulNBits by their name, and the names of their scales.
    """

    tensors: list[_Tensor] = field(default_factory=list)
    nodes: int = 0
    uses: dict[str, str] = field(default_factory=dict)
    nbits: dict[str, tuple[int, int, int, tuple[str, ...]]] = field(default_factory=dict)


def audit_onnx(path: Path) -> FileAudit:
    """Walk through the messages, and count.

    Raises:
      UserError: damaged, no ONNX file, or one whose numbers lie in other files.
    """
    data = path.read_bytes()
    found = _Graph()
    try:
        graphs = [value for number, kind, value, _ in _fields(memoryview(data)) if (number, kind) == (GRAPH, BYTES)]
        if not graphs:
            raise _Damaged
        for graph in graphs:
            _read_graph(path, graph, found)
    except (_Damaged, UnicodeDecodeError):
        raise UserError(f"{path} is no ONNX file, or damaged: export or copy it again") from None
    tensors, other = _parameters(found)
    payload = sum(tensor.nbytes for tensor in tensors) + other
    descriptions = sum(t.size - t.payload for t in found.tensors)
    parts = {"other tensors": other, "names and shapes": descriptions, "nodes": found.nodes}
    parts["rest"] = len(data) - payload - descriptions - found.nodes
    return FileAudit("ONNX file", len(data), tuple(tensors), parts)


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """An integer, and where it ends."""
    value = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise _Damaged


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview, int]]:
    """Number, wire type, value, and bytes with the tag, of each field of a message."""
    place = 0
    while place < len(data):
        start = place
        tag, place = _varint(data, place)
        kind, end = tag & 7, place
        if kind == VARINT:
            value, end = _varint(data, place)
        elif kind == BYTES:
            length, place = _varint(data, place)
            end = place + length
        elif kind in (FIXED64, FIXED32):
            end = place + (8 if kind == FIXED64 else 4)
        else:
            raise _Damaged
        if end > len(data):
            raise _Damaged
        yield tag >> 3, kind, value if kind == VARINT else data[place:end], end - start
        place = end


def _text(value: int | memoryview) -> str:
    if isinstance(value, int):
        raise _Damaged
    return bytes(value).decode("utf-8")


def _read_graph(path: Path, graph: memoryview, found: _Graph) -> None:
    for number, kind, value, size in _fields(graph):
        if (number, kind) == (INITIALIZER, BYTES):
            found.tensors.append(_read_tensor(path, value, size))
        elif (number, kind) == (NODE, BYTES):
            inside = len(found.tensors), found.nodes
            _read_node(path, value, found)
            nested = sum(t.size for t in found.tensors[inside[0] :]) + found.nodes - inside[1]
            found.nodes += size - nested


def _read_node(path: Path, node: memoryview, found: _Graph) -> None:
    inputs, name, kind, numbers = [], "", "", {}
    for number, wire, value, _ in _fields(node):
        if (number, wire) == (NODE_INPUT, BYTES):
            inputs.append(_text(value))
        elif (number, wire) == (NODE_NAME, BYTES):
            name = _text(value)
        elif (number, wire) == (OP_TYPE, BYTES):
            kind = _text(value)
        elif (number, wire) == (ATTRIBUTE, BYTES):
            numbers |= _read_attribute(path, value, found)
    for tensor in inputs:
        found.uses.setdefault(tensor, name)
    if kind == "MatMulNBits" and len(inputs) > 2 and {"N", "K", "bits"} <= numbers.keys():
        found.nbits[inputs[1]] = (numbers["N"], numbers["K"], numbers["bits"], tuple(inputs[2:4]))


def _read_attribute(path: Path, attribute: memoryview, found: _Graph) -> dict[str, int]:
    """Its number by its name, if it has one; tensors and graphs within it are taken in."""
    name, integers = "", []
    for number, wire, value, size in _fields(attribute):
        if (number, wire) == (ATTRIBUTE_NAME, BYTES):
            name = _text(value)
        elif (number, wire) == (INTEGER, VARINT):
            integers.append(value)
        elif number in (TENSOR, TENSORS) and wire == BYTES:
            found.tensors.append(_read_tensor(path, value, size))
        elif number in (SUBGRAPH, SUBGRAPHS) and wire == BYTES:
            _read_graph(path, value, found)
    return {name: integers[-1]} if integers else {}


def _read_tensor(path: Path, message: memoryview, size: int) -> _Tensor:
    tensor = _Tensor("", 0, (), size, 0, memoryview(b""))
    for number, wire, value, _ in _fields(message):
        if number == DIMS and wire == VARINT:
            tensor.shape += (value,)
        elif number == DIMS and wire == BYTES:  # packed
            place = 0
            while place < len(value):
                side, place = _varint(value, place)
                tensor.shape += (side,)
        elif number == DATA_TYPE and wire == VARINT:
            tensor.dtype = value
        elif number == TENSOR_NAME and wire == BYTES:
            tensor.name = _text(value)
        elif number == LOCATION and value:
            raise UserError(f"{path}: {tensor.name or 'a tensor'} lies in another file: save the model as a single one")
        elif number in PAYLOADS and wire == BYTES:
            tensor.payload += len(value)
            tensor.raw = value if number == RAW else tensor.raw
    return tensor


def _parameters(found: _Graph) -> tuple[list[StoredTensor], int]:
    """Parameters with what belongs to them, and the bytes of all other tensors."""
    belongs = {scale: name for name, (*_, scales) in found.nbits.items() for scale in scales}
    names = {tensor.name for tensor in found.tensors}
    for name in names:
        base = name.removesuffix(QUANTIZED)
        if base != name:
            belongs |= {base + end: name for end in BELONGING if base + end in names}
    stored: dict[str, StoredTensor] = {}
    extra: dict[str, int] = {}
    other = 0
    for number, tensor in enumerate(found.tensors):
        encoding = DTYPES.get(tensor.dtype, "")
        if tensor.name in belongs:
            owner = belongs[tensor.name]
            extra[owner] = extra.get(owner, 0) + tensor.payload
        elif tensor.name in found.nbits or encoding in PARAMETERS:
            name = (
                f"{tensor.name} {number}" if tensor.name in stored or not tensor.name else tensor.name
            )  # of subgraphs
            stored[name] = _stored(tensor, encoding, found)
        else:
            other += tensor.payload
    for name, more in extra.items():
        if name in stored:
            stored[name] = replace(stored[name], nbytes=stored[name].nbytes + more)
        else:
            other += more
    return list(stored.values()), other


def _stored(tensor: _Tensor, encoding: str, found: _Graph) -> StoredTensor:
    plain = tensor.name.removesuffix(QUANTIZED).removesuffix(".codes")
    if match_role(NAME_RULES, plain) is None:  # folded and renamed by the exporter: by the node that reads it
        plain = ".".join([*found.uses.get(tensor.name, "").strip("/").split("/")[:-1], "weight"])
    if tensor.name in found.nbits:
        rows, cols, bits, _ = found.nbits[tensor.name]
        codes = _unpack(tensor.raw, rows, cols, bits)
        shape, encoding = (rows, cols), f"int{bits}"
        return StoredTensor(tensor.name, guess_role(plain, shape), encoding, shape, tensor.payload, codes)
    codes = None
    if encoding in CODES:
        codes = np.frombuffer(tensor.raw, np.uint8)
        if encoding in ("int4", "uint4"):
            codes = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)[: math.prod(tensor.shape)]
    return StoredTensor(tensor.name, guess_role(plain, tensor.shape), encoding, tensor.shape, tensor.payload, codes)


def _unpack(raw: memoryview, rows: int, cols: int, bits: int) -> np.ndarray:
    """Codes of MatMulNBits, without what fills the last block; (rows, cols)."""
    data = np.frombuffer(raw, np.uint8)
    if not rows or bits not in (2, 4, 8) or data.size % rows or data.size // rows * 8 // bits < cols:
        raise _Damaged
    try:
        return unpack(data.reshape(rows, -1), f"index{bits}", data.size // rows * 8 // bits)[:, :cols]
    except PackedFileError:
        raise _Damaged from None
