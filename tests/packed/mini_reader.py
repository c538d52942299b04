"""A second reader of packed files, written from docs/packed-format.md only and in plain Python, without numpy."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

SECTIONS = ("float32", "float16", "codes", "index", "tokens")
PER_BYTE = {"binary": 8, "ternary": 5, "int4": 2, "int8": 1}


def f32(x: float) -> float:
    """Round to float32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def mini_read(path: Path) -> tuple[dict[str, Any], bytes, dict[str, list[float]]]:
    """Return the index, the tokens, and {tensor name: its weights in row-major order}."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "lowbit_k2 packed" and metadata["version"] == "1"
    assert hashlib.sha256(data[:35] + b"0" * 64 + data[99:]).hexdigest() == data[35:99].decode()
    assert tuple(header) == SECTIONS
    parts = {name: data[8 + length :][slice(*entry["data_offsets"])] for name, entry in header.items()}
    assert sum(map(len, parts.values())) == len(data) - 8 - length
    index = json.loads(zlib.decompress(parts["index"]))
    position = dict.fromkeys(("float32", "float16", "codes"), 0)

    def take(section: str, number_of_bytes: int) -> bytes:
        start = position[section]
        position[section] += number_of_bytes
        assert position[section] <= len(parts[section])
        return parts[section][start : position[section]]

    weights = {}
    for tensor in index["tensors"]:
        shape, encoding = tensor["shape"], tensor["encoding"]
        if encoding in ("float32", "float16"):
            size, letter = (4, "f") if encoding == "float32" else (2, "e")
            weights[tensor["name"]] = list(struct.unpack(f"<{prod(shape)}{letter}", take(encoding, prod(shape) * size)))
            continue
        rows, cols = shape[0], prod(shape[1:])
        blocks = -(-cols // 64)
        number = {"tensor": 1, "channel": rows, "block64": rows * blocks}[tensor["steps"]]
        steps = struct.unpack(f"<{number}f", take("float32", 4 * number))
        values = []
        for r in range(rows):
            codes = unpack_row(take("codes", -(-cols // PER_BYTE[encoding])), encoding, cols)
            for k, c in enumerate(codes):
                step = steps[{"tensor": 0, "channel": r, "block64": r * blocks + k // 64}[tensor["steps"]]]
                number = f32(tensor["table"][c]) if "table" in tensor else c - tensor.get("zero_point", 0)
                values.append(f32(number * step))
        weights[tensor["name"]] = values
    assert all(position[section] == len(parts[section]) for section in position)
    return index, zlib.decompress(parts["tokens"]), weights


def unpack_row(row: bytes, encoding: str, cols: int) -> list[int]:
    """Codes of one row."""
    codes: list[int] = []
    for byte in row:
        if encoding == "binary":
            codes += [2 * (byte >> i & 1) - 1 for i in range(8)]
        elif encoding == "ternary":
            codes += [byte // 3**i % 3 - 1 for i in range(5)]
        elif encoding == "int4":
            codes += [n - 16 * (n > 7) for n in (byte & 15, byte >> 4)]
        else:
            codes.append(byte - 256 * (byte > 127))
    return codes[:cols]
