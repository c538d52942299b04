"""The outer layer of a packed file: a safetensors file of five sections under one checksum.

Five sections instead of a safetensors entry per tensor, because an entry costs about 90 bytes, which for a model of
300 kB and 200 tensors would be 6% of the file. The checksum is the SHA-256 of the whole file, its own 64 digits
counted as zeros, so that no byte is left out. Safetensors' own reader accepts most flipped bits and many odd headers,
hence the reader here; any safetensors reader can open the files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lowbit_k2.packed.errors import PackedFileError

FORMAT = "lowbit_k2 packed"
VERSION, CODED_VERSION = 2, 3  # that are written
READABLE = (1, 2, 3)
# In the order of the file. Wide types first, so that every section is aligned.
SECTIONS = {
    "float32": ("F32", np.dtype("<f4")),
    "float16": ("F16", np.dtype("<f2")),
    "codes": ("U8", np.dtype("u1")),
    "index": ("U8", np.dtype("u1")),
    "tokens": ("U8", np.dtype("u1")),
}
START = b'{"__metadata__":{"sha256":"'  # the digits follow, at a place that can be named without parsing
DIGITS = slice(8 + len(START), 8 + len(START) + 64)
MAX_HEADER = 4096  # ours take under 500 bytes
MAX_INFLATED = 1 << 26  # a compressed section that grows beyond 64 MiB is a trap
MAX_DIGITS = 4300  # of an integer in JSON; Python's own limit where it has one, its time is quadratic in them


class Sections(NamedTuple):
    """What the outer layer holds.

    arrays: {section: read-only 1-D array of its type}.
    head_bytes: in front of the first section.
    """

    arrays: dict[str, np.ndarray]
    head_bytes: int
    version: int


def write_sections(path: str | Path, sections: Mapping[str, bytes], version: int) -> None:
    """Write all sections as a file of a version, atomically: `path` appears complete or not at all.

    Raises:
      PackedFileError: the file system refuses.
    """
    header = _header({name: len(sections[name]) for name in SECTIONS}, version)
    head = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256(head)
    for name in SECTIONS:
        digest.update(sections[name])
    head = head[: DIGITS.start] + digest.hexdigest().encode() + head[DIGITS.stop :]
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(path, [head, *(sections[name] for name in SECTIONS)])
    except OSError as error:
        raise PackedFileError(f"{path} cannot be written: {error.strerror or error}") from None


def read_sections(path: str | Path) -> Sections:
    """Map a file into memory, check every byte of it, and return its sections.

    Raises:
      PackedFileError: the file is missing, foreign, truncated, altered, or of another version.
    """
    path = Path(path)
    content = _map(path)
    head_bytes, lengths, version = _check_header(path, content)
    digest = hashlib.sha256(content[: DIGITS.start] + b"0" * 64)
    with memoryview(content) as view, view[DIGITS.stop :] as rest:
        digest.update(rest)
    if content[DIGITS] != digest.hexdigest().encode():
        raise PackedFileError(f"{path} is altered or damaged (its checksum is wrong): export or copy it again")
    arrays, offset = {}, head_bytes
    for name, (_, kind) in SECTIONS.items():
        arrays[name] = np.frombuffer(content, kind, lengths[name] // kind.itemsize, offset)
        offset += lengths[name]
    return Sections(arrays, head_bytes, version)


def deflate(data: bytes) -> bytes:
    """zlib stream of `data`."""
    if len(data) > MAX_INFLATED:
        raise PackedFileError(f"{len(data)} bytes of tokens or descriptions are over the limit of {MAX_INFLATED}")
    return zlib.compress(data, 9)


def inflate(data: np.ndarray, what: str) -> bytes:
    """Inverse of `deflate`; never gives more than MAX_INFLATED bytes."""
    stream = zlib.decompressobj()
    try:
        result = stream.decompress(data.tobytes(), MAX_INFLATED)
    except zlib.error as error:
        raise PackedFileError(f"the {what} cannot be decompressed: {error}") from None
    if not stream.eof or stream.unused_data:
        raise PackedFileError(f"the {what} is no single zlib stream of at most {MAX_INFLATED} bytes")
    return result


def dump_json(value: Any) -> bytes:
    """Compact JSON with sorted keys, so that equal models give equal files."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise PackedFileError(f"a description is not plain data for JSON: {error}") from None


def load_json(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object, whatever the bytes are."""
    try:
        value = json.loads(data.decode("utf-8"), parse_int=_parse_int)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise PackedFileError(f"the {what} is no JSON object")
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _layout(lengths: Mapping[str, int]) -> dict[str, Any]:
    """Safetensors' description of sections of these lengths in bytes."""
    layout, offset = {}, 0
    for name, (dtype, kind) in SECTIONS.items():
        end = offset + lengths[name]
        layout[name] = {"dtype": dtype, "shape": [lengths[name] // kind.itemsize], "data_offsets": [offset, end]}
        offset = end
    return layout


def _header(lengths: Mapping[str, int], version: int) -> bytes:
    metadata = {"sha256": "0" * 64, "format": FORMAT, "version": str(version)}
    header = json.dumps({"__metadata__": metadata, **_layout(lengths)}, separators=(",", ":")).encode()
    assert header.startswith(START) and len(header) <= MAX_HEADER, header
    return header + b" " * (-len(header) % 8)  # safetensors aligns the data to 8 bytes


def _map(path: Path) -> mmap.mmap:
    try:
        if path.exists() and not path.is_file():
            raise PackedFileError(f"{path} is not a file: give the packed file itself")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise PackedFileError(f"{path} is empty: export the model again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise PackedFileError(f"{path} does not exist: export a model first") from None
    except OSError as error:
        raise PackedFileError(f"{path} cannot be read: {error.strerror or error}") from None


def _check_header(path: Path, content: mmap.mmap) -> tuple[int, dict[str, int], int]:
    """Bytes in front of the data, each section's length in bytes, version. All but the checksum is checked here."""
    size, ours = len(content), content[8 : DIGITS.start] == START
    header_bytes = int.from_bytes(content[:8], "little")
    if size < 10 or header_bytes > size - 8 or content[8:9] != b"{":
        if ours:
            raise PackedFileError(f"{path} is truncated or damaged within its header: export or copy it again")
        raise PackedFileError(f"{path} is not a safetensors file: packed models are made by export.py")
    if header_bytes > MAX_HEADER:
        raise PackedFileError(f"{path} is a safetensors file, but no packed model of lowbit_k2")
    try:
        header = load_json(content[8 : 8 + header_bytes], "header")
    except PackedFileError:
        raise PackedFileError(f"{path} has a damaged header: export or copy it again") from None
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise PackedFileError(f"{path} is a safetensors file, but no packed model of lowbit_k2")
    version = _check_version(path, metadata.get("version"))
    if not ours:
        raise PackedFileError(f"{path} was rewritten by another program, which voids its checksum: export it again")
    lengths = _section_lengths(path, header)
    end = 8 + header_bytes + sum(lengths.values())
    if size < end:
        raise PackedFileError(f"{path} is truncated: {size} of {end} bytes are there; export or copy it again")
    if size > end:
        raise PackedFileError(f"{path} is damaged: {size - end} bytes lie behind its end; export or copy it again")
    return 8 + header_bytes, lengths, version


def _check_version(path: Path, version: Any) -> int:
    if isinstance(version, str) and version.isascii() and version.isdigit() and 0 < len(version) < 6:
        if version in map(str, READABLE):
            return int(version)
        raise PackedFileError(
            f"{path} has format version {version}, this program reads versions 1 to {READABLE[-1]}: update lowbit_k2"
        )
    raise PackedFileError(f"{path} has a damaged header: export or copy it again")


def _section_lengths(path: Path, header: dict[str, Any]) -> dict[str, int]:
    lengths = {}
    for name in SECTIONS:
        try:
            start, end = header[name]["data_offsets"]
        except (KeyError, TypeError, ValueError):
            start, end = 0, -1
        lengths[name] = end - start if type(start) is type(end) is int else -1
    if min(lengths.values()) < 0 or header != _layout(lengths):
        raise PackedFileError(f"{path} does not hold the sections {', '.join(SECTIONS)} as it should: export it again")
    return lengths


def _write_atomically(path: Path, parts: list[bytes]) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix="-" + path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes files private; outputs follow the user's umask
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
