"""Every byte of a safetensors file: its header, its tensors, and what lies between or behind them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lowbit_k2.audit.stored import CODES, PARAMETERS, FileAudit, StoredTensor, guess_role
from lowbit_k2.errors import UserError

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8"}
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit


def audit_safetensors(path: Path) -> FileAudit:
    """Read the header, and count.

    Raises:
      UserError: no safetensors file, or one that is damaged.
    """
    data = path.read_bytes()
    start, entries = _header(path, data)
    spans = sorted(_span(path, name, entry, len(data) - start) for name, entry in entries.items())
    tensors, other, end = [], 0, 0
    for first, last, name in spans:
        if first < end:
            raise UserError(f"{path}: {name} overlaps with the tensor before it: the file is damaged")
        end = last
        shape = tuple(entries[name]["shape"])
        encoding = DTYPES.get(entries[name]["dtype"], entries[name]["dtype"].lower())
        if encoding not in PARAMETERS:
            other += last - first
            continue
        codes = np.frombuffer(data, np.uint8, last - first, start + first) if encoding in CODES else None
        tensors.append(StoredTensor(name, guess_role(name, shape), encoding, shape, last - first, codes))
    used = other + sum(tensor.nbytes for tensor in tensors)
    parts = {"header": start, "other tensors": other, "unused": len(data) - start - used}
    return FileAudit("safetensors file", len(data), tuple(tensors), parts)


def _header(path: Path, data: bytes) -> tuple[int, dict[str, Any]]:
    """Where the data begin, and the entries."""
    length = int.from_bytes(data[:8], "little")
    try:
        if not 2 <= length <= min(MAX_HEADER, len(data) - 8):
            raise ValueError
        entries = dict(json.loads(data[8 : 8 + length]))
        entries.pop("__metadata__", None)
        for entry in entries.values():
            assert isinstance(entry["dtype"], str) and all(type(n) is int for n in entry["data_offsets"])
            assert all(type(n) is int and n >= 0 for n in entry["shape"]) and len(entry["data_offsets"]) == 2
    except (ValueError, TypeError, KeyError, RecursionError, AssertionError):
        raise UserError(f"{path} is no safetensors file, or its header is damaged: copy it again") from None
    return 8 + length, entries


def _span(path: Path, name: str, entry: dict[str, Any], size: int) -> tuple[int, int, str]:
    first, last = entry["data_offsets"]
    width = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
    expected = width.get(DTYPES.get(entry["dtype"], ""))
    if not 0 <= first <= last <= size or (expected and last - first != expected * math.prod(entry["shape"])):
        raise UserError(f"{path}: {name} does not lie within the file as its header says: copy it again")
    return first, last, name
