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


def f32(x: float) -> float:
    """Round to float32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def mini_read(path: Path) -> tuple[dict[str, Any], bytes, dict[str, list[float]]]:
    """Return the index, the tokens, and {tensor name: its weights in row-major order}."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "lowbit_k2 packed" and metadata["version"] in ("1", "2", "3")
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
        if "same_as" in tensor:
            weights[tensor["name"]] = weights[tensor["same_as"]]
            continue
        shape, encoding = tensor["shape"], tensor["encoding"]
        if encoding in ("float32", "float16"):
            size, letter = (4, "f") if encoding == "float32" else (2, "e")
            weights[tensor["name"]] = list(struct.unpack(f"<{prod(shape)}{letter}", take(encoding, prod(shape) * size)))
            continue
        rows, cols = shape[0], prod(shape[1:])
        blocks = -(-cols // 64)
        number = {"tensor": 1, "channel": rows, "block64": rows * blocks}[tensor["steps"]]
        steps = struct.unpack(f"<{number}f", take("float32", 4 * number))
        table = tensor.get("table")
        if isinstance(table, int):
            assert encoding.startswith("index") and table <= 2 ** int(encoding[5:])
            table = struct.unpack(f"<{table}f", take("float32", 4 * table))
        values, coded = [], tensor.get("coded") if metadata["version"] == "3" else None
        stored = whole_codes(encoding) if coded else encoding
        packed = zlib.decompress(take("codes", coded)) if coded else take("codes", rows * row_bytes(encoding, cols))
        size = row_bytes(stored, cols)
        assert len(packed) == rows * size
        for r in range(rows):
            codes = unpack_row(packed[r * size : (r + 1) * size], stored, cols)
            assert table is None or 0 <= min(codes) <= max(codes) < len(table)
            for k, c in enumerate(codes):
                step = steps[{"tensor": 0, "channel": r, "block64": r * blocks + k // 64}[tensor["steps"]]]
                number = c - tensor.get("zero_point", 0) if table is None else f32(table[c])
                values.append(f32(number * step))
        weights[tensor["name"]] = values
    assert all(position[section] == len(parts[section]) for section in position)
    return index, zlib.decompress(parts["tokens"]), weights


def bits_of(encoding: str) -> int:
    """Bits of a weight in a stream."""
    return 1 if encoding == "binary" else int(encoding.removeprefix("int").removeprefix("index"))


def whole_codes(encoding: str) -> str:
    """The encoding of coded rows."""
    if encoding == "ternary" or 8 % bits_of(encoding) == 0:
        return encoding
    return "index8" if encoding.startswith("index") else "int8"


def row_bytes(encoding: str, cols: int) -> int:
    return -(-cols // 5) if encoding == "ternary" else -(-cols * bits_of(encoding) // 8)


def unpack_row(row: bytes, encoding: str, cols: int) -> list[int]:
    """Codes of one row."""
    if encoding == "ternary":
        digits = [byte // 3**i % 3 for byte in row for i in range(5)]
        assert max(row) <= 242 and not any(digits[cols:])
        return [digit - 1 for digit in digits[:cols]]
    bits, stream = bits_of(encoding), int.from_bytes(row, "little")
    assert stream >> cols * bits == 0
    numbers = [stream >> i * bits & 2**bits - 1 for i in range(cols)]
    if encoding == "binary":
        return [2 * n - 1 for n in numbers]
    return numbers if encoding.startswith("index") else [n - 2**bits * (n >= 2 ** (bits - 1)) for n in numbers]
