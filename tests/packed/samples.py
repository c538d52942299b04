"""Models for the tests of packed files: every encoding, granularity and grid, with rows that do not fill bytes."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lowbit_k2.packed import PackedModel, PackedTensor

GRIDS = {
    "binary": np.array([-1, 1], np.int8),
    "ternary": np.arange(-1, 2, dtype=np.int8),
    **{f"int{n}": np.arange(-(2 ** (n - 1)), 2 ** (n - 1)).astype(np.int8) for n in range(3, 9)},
    **{f"index{n}": np.arange(2**n).astype(np.uint8) for n in range(1, 9)},
}
TABLE_SIZES = {f"index{n}": 2**n - (n in (3, 8)) for n in range(1, 9)}  # two are not full
STEP_SHAPES = {"tensor": (), "channel": (6,), "block64": (6, 2)}


def sample_tensors(seed: int = 0) -> list[PackedTensor]:
    """One tensor of 6 x 7 x 11 for each encoding of codes and granularity, and floats; some with aliases or notes."""
    rng = np.random.default_rng(seed)
    tensors = []
    for encoding, grid in GRIDS.items():
        for granularity, shape in STEP_SHAPES.items():
            size = TABLE_SIZES.get(encoding)
            codes = rng.choice(grid[:size], (6, 7, 11))
            step = rng.uniform(0.01, 2.0, shape).astype(np.float32)
            table = None if size is None else rng.normal(size=size)
            name = f"{encoding}.{granularity}"
            tensors.append(PackedTensor.from_codes(name, "encoder_linear", encoding, codes, step, granularity, table))
    tensors[-1] = replace(tensors[-1], aliases=("tied", "tied.again"), input_bits=8)
    half, single = rng.normal(size=13).astype(np.float16), rng.normal(size=(2, 5)).astype(np.float32)
    tensors.insert(2, PackedTensor.from_values("half", "norm", "float16", half))
    tensors.insert(4, PackedTensor.from_values("single", "bias", "float32", single, aliases=("alone",), input_bits=16))
    tensors.append(PackedTensor.from_values("scalar", "bias", "float32", np.float32(0.1).reshape(())))
    return tensors


def sample_model(seed: int = 0) -> PackedModel:
    return PackedModel(
        sample_tensors(seed),
        model_config={"d_model": 16, "conv_norm": "batch"},
        tokens="<blk>\u2581a".encode() * 5,
        tokens_kind="sentencepiece",
        features={"type": "fbank", "dither": 0.0},
        extra={"precision": "1", "note": 'quotes " and \u00fc'},
    )


def forge(path: Path, target: Path, listing: Any = None, header: dict | None = None, **sections: bytes) -> Path:
    """Copy a packed file with changes made on purpose: a right checksum over wrong content.

    listing: replaces the index's JSON; header: entries to merge into `__metadata__`; sections: raw bytes of sections.
    """
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    old = json.loads(data[8 : 8 + length])
    metadata = {**old.pop("__metadata__"), "sha256": "0" * 64, **(header or {})}
    parts = {name: data[8 + length :][slice(*entry["data_offsets"])] for name, entry in old.items()}
    parts.update(sections)
    if listing is not None:
        parts["index"] = zlib.compress(listing if isinstance(listing, bytes) else json.dumps(listing).encode())
    layout, offset = {}, 0
    for name, part in parts.items():
        size = {"F32": 4, "F16": 2, "U8": 1}[old[name]["dtype"]]
        layout[name] = {**old[name], "shape": [len(part) // size], "data_offsets": [offset, offset + len(part)]}
        offset += len(part)
    text = json.dumps({"__metadata__": metadata, **layout}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return sign(len(text).to_bytes(8, "little") + text + b"".join(parts.values()), target)


def sign(content: bytes, target: Path) -> Path:
    """Write a file with the right checksum over whatever it holds."""
    digest = hashlib.sha256(content[:35] + b"0" * 64 + content[99:]).hexdigest().encode()
    target.write_bytes(content[:35] + digest + content[99:])
    return target


def read_index(path: Path) -> dict[str, Any]:
    """The index of a packed file as plain data."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8 : 8 + length])["index"]["data_offsets"]
    return json.loads(zlib.decompress(data[8 + length + start : 8 + length + end]))
