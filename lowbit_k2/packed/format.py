"""Packed files: `write_packed` and `read_packed`. docs/packed-format.md describes them for readers elsewhere.

The index, one compressed JSON object, lists the tensors in the order of their data. Offsets are not stored: each
section is used up from its start to its end, so no description can point outside of it or at the same bytes twice.
Version 3 is version 2 with codes that are coded by their frequency (coding.py), and is written only where there are
such. Version 1 is still read: it lacks most encodings, aliases and the bits of inputs, and has its tables in the index.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lowbit_k2.core.encodings import Encoding
from lowbit_k2.core.grids import GRANULARITIES, group_shape, matrix_shape
from lowbit_k2.packed.bitpack import encoding_named
from lowbit_k2.packed.coding import expand, shrink
from lowbit_k2.packed.container import (
    CODED_VERSION,
    VERSION,
    Sections,
    deflate,
    dump_json,
    inflate,
    load_json,
    read_sections,
    write_sections,
)
from lowbit_k2.packed.contents import FileSizes, PackedModel
from lowbit_k2.packed.errors import PackedFileError
from lowbit_k2.packed.tensors import MAX_DIMS, PackedTensor

CODE_KEYS = {"steps", "table", "zero_point", "coded"}  # of an entry with codes only
DESCRIPTION_KEYS = {"role", "encoding", "shape", "input_bits", *CODE_KEYS}
MAX_SIDE = 1 << 63  # of a shape
FIRST_ENCODINGS = ("binary", "ternary", "int4", "int8", "float16", "float32")  # of version 1
# With a table, the codes of version 1 that are not negative are these places, in the very same bytes.
FIRST_INDICES = {"int4": ("index4", 8), "int8": ("index8", 128)}


def write_packed(path: str | Path, model: PackedModel, compress: bool = False) -> None:
    """Write a packed file, atomically. Equal models give equal bytes.

    Args:
      compress: code the codes of each tensor that becomes a tenth smaller by it.
    Raises:
      PackedFileError: a description that JSON cannot hold, or the file system refuses.
    """
    parts: dict[str, list[bytes]] = {"float32": [], "float16": [], "codes": []}
    coded = {tensor.name: stream for tensor in model.tensors if compress and (stream := _coded(tensor)) is not None}
    for tensor in model.tensors:
        section = tensor.encoding if tensor.is_float else "codes"
        parts[section].append(coded.get(tensor.name) or tensor.data.tobytes())
        if tensor.step is not None:
            parts["float32"].append(tensor.step.astype("<f4").tobytes())
        if tensor.table is not None:
            parts["float32"].append(tensor.table.astype("<f4").tobytes())
    index = {
        "model": dict(model.model_config),
        "features": dict(model.features),
        "tokens_kind": model.tokens_kind,
        "extra": dict(model.extra),
        "tensors": [entry for tensor in model.tensors for entry in _describe(tensor, len(coded.get(tensor.name, b"")))],
    }
    sections = {name: b"".join(data) for name, data in parts.items()}
    sections |= {"index": deflate(dump_json(index)), "tokens": deflate(model.tokens)}
    write_sections(path, sections, CODED_VERSION if coded else VERSION)


def _coded(tensor: PackedTensor) -> bytes | None:
    """The stream that takes the place of a tensor's rows; None where they stay."""
    if tensor.is_float:
        return None
    return shrink(tensor.data, encoding_named(tensor.encoding), matrix_shape(tensor.shape)[1])


def read_packed(path: str | Path) -> PackedModel:
    """Read and check a packed file. Tensors stay memory-mapped and packed until their `codes` are asked for.

    Raises:
      PackedFileError: one line that names the file and what is wrong with it.
    """
    sections = read_sections(path)
    arrays = sections.arrays
    try:
        index = load_json(inflate(arrays["index"], "index"), "index")
        tokens = inflate(arrays["tokens"], "tokens")
        tensors = _read_tensors(index.get("tensors"), sections)
        parts = {name: index.get(name) for name in ("model", "features", "extra")}
        if not all(isinstance(part, dict) for part in parts.values()) or not isinstance(index.get("tokens_kind"), str):
            raise PackedFileError("the index lacks model, features, tokens_kind or extra")
        sizes = FileSizes(
            total=sections.head_bytes + sum(array.nbytes for array in arrays.values()),
            header=sections.head_bytes,
            index=arrays["index"].nbytes,
            tokens=arrays["tokens"].nbytes,
        )
        return PackedModel(
            tensors, parts["model"], tokens, index["tokens_kind"], parts["features"], parts["extra"], sizes
        )
    except PackedFileError as error:
        raise PackedFileError(f"{path}: {error}") from None


def _describe(tensor: PackedTensor, coded_bytes: int) -> list[dict[str, Any]]:
    """A tensor's entry in the index, and those of its aliases; `coded_bytes` 0: its codes are not coded."""
    entry: dict[str, Any] = {
        "name": tensor.name,
        "role": tensor.role,
        "encoding": tensor.encoding,
        "shape": list(tensor.shape),
    }
    if not tensor.is_float:
        entry["steps"] = tensor.granularity
    if tensor.table is not None:
        entry["table"] = len(tensor.table)
    if tensor.zero_point:
        entry["zero_point"] = tensor.zero_point
    if coded_bytes:
        entry["coded"] = coded_bytes
    if tensor.input_bits:
        entry["input_bits"] = tensor.input_bits
    return [entry, *({"name": alias, "same_as": tensor.name} for alias in tensor.aliases)]


class _Cursor:
    """Takes a section's numbers one tensor after the other."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.rest = {name: arrays[name] for name in ("float32", "float16", "codes")}

    def take(self, section: str, shape: tuple[int, ...], name: str) -> np.ndarray:
        count, rest = math.prod(shape), self.rest[section]
        if count > len(rest):
            raise PackedFileError(f"tensor {name}: shape {shape} is larger than what is left of section {section}")
        self.rest[section] = rest[count:]
        return rest[:count].reshape(shape)

    def finish(self) -> None:
        for section, rest in self.rest.items():
            if len(rest):
                raise PackedFileError(f"section {section} holds {rest.nbytes} bytes that belong to no tensor")


def _read_tensors(entries: Any, sections: Sections) -> list[PackedTensor]:
    if not isinstance(entries, list):
        raise PackedFileError("the index lacks its list of tensors")
    cursor = _Cursor(sections.arrays)
    tensors: dict[str, PackedTensor] = {}
    aliases: dict[str, list[str]] = {}  # of each tensor
    seen: set[str] = set()
    for entry in entries:
        name = _read_name(entry, seen)
        if sections.version > 1 and "same_as" in entry:
            aliases[_read_same_as(name, entry, tensors)].append(name)
            continue
        tensors[name] = _read_tensor(name, entry, cursor, sections.version)
        aliases[name] = []
    cursor.finish()
    return [replace(t, aliases=tuple(aliases[name])) if aliases[name] else t for name, t in tensors.items()]


def _read_name(entry: Any, seen: set[str]) -> str:
    if not isinstance(entry, dict):
        raise PackedFileError("an entry of the index describes no tensor")
    name = entry.get("name")
    if not isinstance(name, str):
        raise PackedFileError(f"a tensor's name {name!r} is no text")
    if name in seen:
        raise PackedFileError(f"tensor {name} is there twice")
    seen.add(name)
    return name


def _read_same_as(name: str, entry: dict[str, Any], tensors: dict[str, PackedTensor]) -> str:
    """The tensor of which an entry is another name."""
    first = entry["same_as"]
    if not isinstance(first, str) or first not in tensors:
        raise PackedFileError(f"tensor {name}: the same as {first!r}, which is no tensor in front of it")
    if not DESCRIPTION_KEYS.isdisjoint(entry):
        raise PackedFileError(f"tensor {name}: the same as {first}, and yet described anew")
    return first


def _read_tensor(name: str, entry: dict[str, Any], cursor: _Cursor, version: int) -> PackedTensor:
    """One entry of the index and its data; keys that are not known are left alone, and PackedTensor checks the rest."""
    role = entry.get("role")
    if not isinstance(role, str):
        raise PackedFileError(f"tensor {name}: its role {role!r} is no text")
    encoding = _read_encoding(name, entry, version)
    shape = _read_shape(name, entry.get("shape"))
    input_bits = entry.get("input_bits", 0) if version > 1 else 0
    if encoding.is_float:
        if version > 1 and not CODE_KEYS.isdisjoint(entry):
            raise PackedFileError(f"tensor {name}: {encoding.name} has no steps, no table and no zero point")
        data = cursor.take(encoding.name, shape, name)
        return PackedTensor(name, role, encoding.name, shape, data, input_bits=input_bits)
    if not shape:
        raise PackedFileError(f"tensor {name}: codes need at least one dimension")
    granularity = entry.get("steps")
    if granularity not in GRANULARITIES:
        raise PackedFileError(f"tensor {name}: unknown granularity {granularity!r} of its steps")
    rows, cols = matrix_shape(shape)
    step = cursor.take("float32", group_shape(shape, granularity), name)
    read_table = _read_table if version > 1 else _read_first_table
    encoding, table = read_table(name, entry, encoding, cursor)
    coded_bytes = entry.get("coded") if version > 2 else None
    if coded_bytes is None:
        data = cursor.take("codes", (rows, encoding.row_bytes(cols)), name)
    else:
        data = _read_coded(name, coded_bytes, encoding, (rows, cols), cursor)
    notes = {"input_bits": input_bits, "coded_bytes": coded_bytes}
    zero_point = entry.get("zero_point", 0)
    return PackedTensor(name, role, encoding.name, shape, data, step, granularity, table, zero_point, **notes)


def _read_coded(name: str, coded_bytes: Any, encoding: Encoding, shape: tuple[int, int], cursor: _Cursor) -> np.ndarray:
    """Packed rows of a tensor whose codes are coded."""
    if type(coded_bytes) is not int or coded_bytes < 1:
        raise PackedFileError(f"tensor {name}: {coded_bytes!r} is no number of coded bytes")
    stream = cursor.take("codes", (coded_bytes,), name)
    try:
        return expand(stream, encoding, shape)
    except PackedFileError as error:
        raise PackedFileError(f"tensor {name}: {error}") from None


def _read_encoding(name: str, entry: dict[str, Any], version: int) -> Encoding:
    encoding = entry.get("encoding")
    try:
        if version == 1 and encoding not in FIRST_ENCODINGS:
            raise PackedFileError(f"unknown encoding {encoding!r}: version 1 knows {', '.join(FIRST_ENCODINGS)}")
        return encoding_named(encoding)
    except PackedFileError as error:
        raise PackedFileError(f"tensor {name}: {error}") from None


def _read_shape(name: str, shape: Any) -> tuple[int, ...]:
    right = isinstance(shape, list) and len(shape) <= MAX_DIMS and all(type(n) is int for n in shape)
    if not right or not all(0 < n < MAX_SIDE for n in shape):
        raise PackedFileError(f"tensor {name}: {shape!r} is no shape")
    return tuple(shape)


def _read_table(
    name: str, entry: dict[str, Any], encoding: Encoding, cursor: _Cursor
) -> tuple[Encoding, np.ndarray | None]:
    """The table in the float32 section, by its number of entries; PackedTensor knows which encodings have one."""
    if "table" not in entry:
        return encoding, None
    entries = entry["table"]
    if type(entries) is not int or entries < 1:
        raise PackedFileError(f"tensor {name}: {entries!r} is no number of entries of a table")
    return encoding, cursor.take("float32", (entries,), name)


def _read_first_table(
    name: str, entry: dict[str, Any], encoding: Encoding, cursor: _Cursor
) -> tuple[Encoding, np.ndarray | None]:
    """The table of version 1, numbers in the index, and the encoding that has tables today."""
    table = entry.get("table")
    if table is None:
        return encoding, None
    if not isinstance(table, list) or not all(type(value) in (int, float) for value in table):
        raise PackedFileError(f"tensor {name}: its table is no list of numbers")
    if encoding.name not in FIRST_INDICES:
        raise PackedFileError(f"tensor {name}: a table of {encoding.name} codes, which are no places in a table")
    index, reachable = FIRST_INDICES[encoding.name]
    try:
        with np.errstate(over="ignore"):
            values = np.array([float(value) for value in table[:reachable]], dtype=np.float32)
    except OverflowError:
        raise PackedFileError(f"tensor {name}: its table must hold finite numbers") from None
    return encoding_named(index), values
