"""Packed files: `write_packed` and `read_packed`. docs/packed-format.md describes them for readers elsewhere.

The index, one compressed JSON object, lists the tensors in the order of their data. Offsets are not stored: each
section is used up from its start to its end, so no description can point outside of it or at the same bytes twice.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from lowbit_k2.packed.bitpack import FLOAT_TYPES, check_encoding, row_bytes
from lowbit_k2.packed.container import deflate, dump_json, inflate, load_json, read_sections, write_sections
from lowbit_k2.packed.errors import PackedFileError
from lowbit_k2.packed.model import (
    GRANULARITIES,
    MAX_DIMS,
    FileSizes,
    PackedModel,
    PackedTensor,
    matrix_shape,
    step_shape,
)


def write_packed(path: str | Path, model: PackedModel) -> None:
    """Write a packed file, atomically. Equal models give equal bytes.

    Raises:
      PackedFileError: a description that JSON cannot hold, or the file system refuses.
    """
    parts: dict[str, list[bytes]] = {"float32": [], "float16": [], "codes": []}
    for tensor in model.tensors:
        section = tensor.encoding if tensor.is_float else "codes"
        parts[section].append(tensor.data.tobytes())
        if tensor.step is not None:
            parts["float32"].append(tensor.step.astype("<f4").tobytes())
    index = {
        "model": dict(model.model_config),
        "features": dict(model.features),
        "tokens_kind": model.tokens_kind,
        "extra": dict(model.extra),
        "tensors": [_describe(tensor) for tensor in model.tensors],
    }
    sections = {name: b"".join(data) for name, data in parts.items()}
    write_sections(path, {**sections, "index": deflate(dump_json(index)), "tokens": deflate(model.tokens)})


def read_packed(path: str | Path) -> PackedModel:
    """Read and check a packed file. Tensors stay memory-mapped and packed until their `codes` are asked for.

    Raises:
      PackedFileError: one line that names the file and what is wrong with it.
    """
    sections, header_bytes = read_sections(path)
    try:
        index = load_json(inflate(sections["index"], "index"), "index")
        tokens = inflate(sections["tokens"], "tokens")
        tensors = _read_tensors(index.get("tensors"), sections)
        parts = {name: index.get(name) for name in ("model", "features", "extra")}
        if not all(isinstance(part, dict) for part in parts.values()) or not isinstance(index.get("tokens_kind"), str):
            raise PackedFileError("the index lacks model, features, tokens_kind or extra")
        sizes = FileSizes(
            total=header_bytes + sum(section.nbytes for section in sections.values()),
            header=header_bytes,
            index=sections["index"].nbytes,
            tokens=sections["tokens"].nbytes,
        )
        return PackedModel(
            tensors, parts["model"], tokens, index["tokens_kind"], parts["features"], parts["extra"], sizes
        )
    except PackedFileError as error:
        raise PackedFileError(f"{path}: {error}") from None


def _describe(tensor: PackedTensor) -> dict[str, Any]:
    """A tensor's entry in the index."""
    entry: dict[str, Any] = {
        "name": tensor.name,
        "role": tensor.role,
        "encoding": tensor.encoding,
        "shape": list(tensor.shape),
    }
    if not tensor.is_float:
        entry["steps"] = tensor.granularity
    if tensor.table is not None:
        entry["table"] = list(tensor.table)
    if tensor.zero_point:
        entry["zero_point"] = tensor.zero_point
    return entry


class _Cursor:
    """Takes a section's numbers one tensor after the other."""

    def __init__(self, sections: dict[str, np.ndarray]) -> None:
        self.rest = {name: sections[name] for name in ("float32", "float16", "codes")}

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


def _read_tensors(entries: Any, sections: dict[str, np.ndarray]) -> list[PackedTensor]:
    if not isinstance(entries, list):
        raise PackedFileError("the index lacks its list of tensors")
    cursor = _Cursor(sections)
    tensors = [_read_tensor(entry, cursor) for entry in entries]
    cursor.finish()
    return tensors


def _read_tensor(entry: Any, cursor: _Cursor) -> PackedTensor:
    """One entry of the index and its data; keys that are not known are left alone."""
    if not isinstance(entry, dict):
        raise PackedFileError("an entry of the index describes no tensor")
    name, role, encoding = (entry.get(key) for key in ("name", "role", "encoding"))
    if not (isinstance(name, str) and isinstance(role, str) and isinstance(encoding, str)):
        raise PackedFileError(f"a tensor's name {name!r}, role or encoding is no text")
    try:
        check_encoding(encoding)
    except PackedFileError as error:
        raise PackedFileError(f"tensor {name}: {error}") from None
    shape = _read_shape(name, entry.get("shape"))
    if encoding in FLOAT_TYPES:
        return PackedTensor(name, role, encoding, shape, cursor.take(encoding, shape, name))
    if not shape:
        raise PackedFileError(f"tensor {name}: codes need at least one dimension")
    granularity = entry.get("steps")
    if granularity not in GRANULARITIES:
        raise PackedFileError(f"tensor {name}: unknown granularity {granularity!r} of its steps")
    rows, cols = matrix_shape(shape)
    step = cursor.take("float32", step_shape(shape, granularity), name)
    data = cursor.take("codes", (rows, row_bytes(cols, encoding)), name)
    table, zero_point = _read_grid(name, entry)
    return PackedTensor(name, role, encoding, shape, data, step, granularity, table, zero_point)


def _read_shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(type(n) is int and n > 0 for n in shape):
        raise PackedFileError(f"tensor {name}: {shape!r} is no shape")
    return tuple(shape)


def _read_grid(name: str, entry: dict[str, Any]) -> tuple[tuple[float, ...] | None, int]:
    table, zero_point = entry.get("table"), entry.get("zero_point", 0)
    if table is not None:
        if not isinstance(table, list) or not all(type(value) in (int, float) for value in table):
            raise PackedFileError(f"tensor {name}: its table is no list of numbers")
        try:
            table = tuple(float(value) for value in table)
        except OverflowError:
            raise PackedFileError(f"tensor {name}: its table must hold finite numbers") from None
    if type(zero_point) is not int or not -128 <= zero_point <= 255:
        raise PackedFileError(f"tensor {name}: {zero_point!r} is no zero point")
    return table, zero_point
