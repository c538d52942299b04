"""Damaged and forged packed files, whose checksum is right: what is wrong has to be noticed by itself."""

from __future__ import annotations

import hashlib
import json
import random
import re
import zlib
from collections.abc import Iterator
from typing import Any

SECTIONS = ("float32", "float16", "codes", "index", "tokens")
NUMBERS = [-1, 0, 1, 2, 7, 16, 255, 4097, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 10**25, 0.5, 1e400, None, "x", [], {}]


def signed(content: bytes) -> bytes:
    """With the checksum that belongs to the content."""
    return content[:35] + hashlib.sha256(content[:35] + b"0" * 64 + content[99:]).hexdigest().encode() + content[99:]


def parts(content: bytes) -> dict[str, bytes]:
    """The sections."""
    head = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:head])
    return {name: content[head:][slice(*header[name]["data_offsets"])] for name in SECTIONS}


def joined(sections: dict[str, bytes], version: str = "2") -> bytes:
    """A file of sections, signed."""
    layout, offset = {}, 0
    for name, dtype, size in zip(SECTIONS, ("F32", "F16", "U8", "U8", "U8"), (4, 2, 1, 1, 1), strict=True):
        end = offset + len(sections[name])
        layout[name] = {"dtype": dtype, "shape": [len(sections[name]) // size], "data_offsets": [offset, end]}
        offset = end
    metadata = {"sha256": "0" * 64, "format": "lowbit_k2 packed", "version": version}
    header = json.dumps({"__metadata__": metadata, **layout}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return signed(len(header).to_bytes(8, "little") + header + b"".join(sections.values()))


def scrambled(data: bytes, draw: random.Random) -> bytes:
    """A few bytes flipped, cut out or put in."""
    content = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(content) + 1)
        match draw.randrange(3):
            case 0 if place < len(content):
                content[place] ^= 1 << draw.randrange(8)
            case 1:
                del content[place : place + draw.randint(1, 40)]
            case _:
                content[place:place] = draw.choice(
                    [b"[" * 300, b'"', b"{", b"9" * 30, b"-", b"\\u", b"\xff", b"e", b","]
                )
    return bytes(content)


def replaced(index: Any, draw: random.Random) -> None:
    """One value of the index changed to something else, in place."""
    while True:
        keys = list(index) if isinstance(index, dict) else range(len(index))
        if not keys:
            return
        key = draw.choice(list(keys))
        if isinstance(index[key], dict | list) and index[key] and draw.random() < 0.9:
            index = index[key]
            continue
        value = draw.choice(["delete", *NUMBERS, "int8", "index8", "float16", "ternary", "block64", "channel"])
        if value == "delete":
            del index[key]
        else:
            index[key] = value
        return


def forged(content: bytes, version: str, count: int) -> Iterator[bytes]:
    """`count` files of each sort."""
    draw = random.Random(0)
    sections = parts(content)
    index, tokens = zlib.decompress(sections["index"]), zlib.decompress(sections["tokens"])
    head = 8 + int.from_bytes(content[:8], "little")
    for _ in range(count):
        values = json.loads(index)
        for _ in range(draw.randint(1, 2)):
            replaced(values, draw)
        yield joined({**sections, "index": zlib.compress(json.dumps(values).encode())}, version)
        yield joined({**sections, "index": zlib.compress(scrambled(index, draw))}, version)
        yield joined({**sections, "tokens": zlib.compress(scrambled(tokens, draw))}, version)
        name = draw.choice([name for name in SECTIONS if sections[name]])
        yield joined({**sections, name: scrambled(sections[name], draw)}, version)
        yield signed(scrambled(content[:head], draw) + content[head:])
        number = draw.choice(re.findall(rb"\d+", content[99:head]))
        changed = content[99:head].replace(
            number, str(draw.randrange(10 ** (len(number) + draw.randrange(2)))).encode(), 1
        )
        yield signed((head - 107 + len(changed) + 99).to_bytes(8, "little") + content[8:99] + changed + content[head:])
        yield content[: draw.randrange(len(content))]
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield bytes(flipped)
