"""Every byte of an ONNX file, as the package `onnx` reads it.

A weight is an initializer, or a tensor in an attribute (of Constant nodes). Codes and what belongs to them are one
parameter: MatMulNBits (codes of 2, 4 or 8 bits, scales), and what onnxruntime's quantization makes (`NAME_quantized`,
`NAME_scale`, `NAME_zero_point`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit_k2.audit.stored import CODES, PARAMETERS, FileAudit, StoredTensor, guess_role
from lowbit_k2.errors import UserError
from lowbit_k2.onnx_packages import require
from lowbit_k2.packed import PackedFileError, unpack
from lowbit_k2.quant.rules import NAME_RULES, match_role

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

QUANTIZED, BELONGING = "_quantized", ("_scale", "_zero_point")
INTEGERS = ("int32_data", "int64_data", "uint64_data")  # fields of TensorProto with numbers of varying size


@dataclass
class _Graph:
    """What all graphs of a file hold.

    nodes: bytes, without the tensors in their attributes.
    uses: name of the first node that reads a tensor.
    nbits: (rows, columns, bits) of the codes of MatMulNBits by their name, and the names of their scales.
    """

    tensors: list[TensorProto] = field(default_factory=list)
    nodes: int = 0
    uses: dict[str, str] = field(default_factory=dict)
    nbits: dict[str, tuple[int, int, int, tuple[str, ...]]] = field(default_factory=dict)


def audit_onnx(path: Path) -> FileAudit:
    """Walk through the graphs, and count.

    Raises:
      UserError: damaged, no ONNX file, one whose numbers lie in other files, or there is no package `onnx`.
    """
    onnx = require("onnx")
    from google.protobuf.message import DecodeError

    data = path.read_bytes()
    found = _Graph()
    try:
        model = onnx.ModelProto.FromString(data)
        if not model.HasField("graph"):
            raise ValueError("there is no graph")
        _read_graph(model.graph, found)
        for tensor in found.tensors:
            if onnx.external_data_helper.uses_external_data(tensor):
                name = tensor.name or "a tensor"
                raise UserError(f"{path}: {name} lies in another file: save the model as a single one")
        tensors, other = _parameters(found)
    except (DecodeError, PackedFileError, ValueError, TypeError) as error:  # of UTF-8, too
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is no ONNX file, or damaged ({reason}): export or copy it again") from None
    payload = sum(tensor.nbytes for tensor in tensors) + other
    descriptions = sum(t.ByteSize() - _num_bytes(t) for t in found.tensors)
    parts = {"other tensors": other, "names and shapes": descriptions, "nodes": found.nodes}
    parts["rest"] = len(data) - payload - descriptions - found.nodes
    return FileAudit("ONNX file", len(data), tuple(tensors), parts)


def _read_graph(graph: GraphProto, found: _Graph) -> None:
    found.tensors += graph.initializer
    for node in graph.node:
        before = len(found.tensors), found.nodes
        _read_node(node, found)
        inside = sum(t.ByteSize() for t in found.tensors[before[0] :]) + found.nodes - before[1]
        found.nodes += node.ByteSize() - inside


def _read_node(node: NodeProto, found: _Graph) -> None:
    for attribute in node.attribute:
        found.tensors += [*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors]
        for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            _read_graph(graph, found)
    for tensor in node.input:
        found.uses.setdefault(tensor, node.name)
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMulNBits" and len(node.input) > 2 and {"N", "K", "bits"} <= numbers.keys():
        found.nbits[node.input[1]] = (numbers["N"], numbers["K"], numbers["bits"], tuple(node.input[2:4]))


def _num_bytes(tensor: TensorProto) -> int:
    """Of a tensor's numbers, in the file."""
    fixed = len(tensor.raw_data) + 4 * len(tensor.float_data) + 8 * len(tensor.double_data)
    texts = sum(map(len, tensor.string_data))
    return fixed + texts + sum(_varint_bytes(getattr(tensor, name)) for name in INTEGERS)


def _varint_bytes(values: Iterable[int]) -> int:
    """Of integers in protocol buffers: seven bits a byte, negative ones as 64 bits."""
    return sum(max(1, -(-(value % 2**64).bit_length() // 7)) for value in values)


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
        encoding, size = _encoding(tensor), _num_bytes(tensor)
        if tensor.name in belongs:
            owner = belongs[tensor.name]
            extra[owner] = extra.get(owner, 0) + size
        elif tensor.name in found.nbits or encoding in PARAMETERS:
            name = (
                f"{tensor.name} {number}" if tensor.name in stored or not tensor.name else tensor.name
            )  # of subgraphs
            stored[name] = _stored(tensor, encoding, size, found)
        else:
            other += size
    for name, more in extra.items():
        if name in stored:
            stored[name] = replace(stored[name], nbytes=stored[name].nbytes + more)
        else:
            other += more
    return list(stored.values()), other


def _encoding(tensor: TensorProto) -> str:
    """`float32` for FLOAT, `int4` for INT4; "" for types that the package does not know."""
    names = {number: name.lower() for name, number in tensor.DataType.items()}
    name = names.get(tensor.data_type, "")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _stored(tensor: TensorProto, encoding: str, size: int, found: _Graph) -> StoredTensor:
    shape, codes = tuple(tensor.dims), None
    plain = tensor.name.removesuffix(QUANTIZED).removesuffix(".codes")
    if match_role(NAME_RULES, plain) is None:  # folded and renamed by the exporter: by the node that reads it
        plain = ".".join([*found.uses.get(tensor.name, "").strip("/").split("/")[:-1], "weight"])
    if tensor.name in found.nbits:
        *shape, bits, _ = found.nbits[tensor.name]
        encoding, codes = f"int{bits}", _unpack(tensor.raw_data, *shape, bits)
    elif encoding in CODES:
        codes = require("onnx").numpy_helper.to_array(tensor).view(np.uint8)
    return StoredTensor(tensor.name, guess_role(plain, shape), encoding, tuple(shape), size, codes)


def _unpack(raw: bytes, rows: int, cols: int, bits: int) -> np.ndarray:
    """Codes of MatMulNBits, without what fills the last block; (rows, cols).

    Raises:
      PackedFileError, ValueError: they are not so many.
    """
    data = np.frombuffer(raw, np.uint8)
    if rows < 1 or bits not in (2, 4, 8) or data.size % rows or data.size // rows * 8 // bits < cols:
        raise ValueError(f"codes of MatMulNBits are not {rows} x {cols} of {bits} bits")
    return unpack(data.reshape(rows, -1), f"index{bits}", data.size // rows * 8 // bits)[:, :cols]
