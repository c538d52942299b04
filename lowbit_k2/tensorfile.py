"""Tensors on disk (`.pt`): the one place that writes and reads them, so that no file of a stranger is ever run.

A file is a zip archive of `torch.save`: a pickle that names tensors, and their bytes. torch's own `weights_only` is
not enough (torch 1.13 hands archives of TorchScript to another loader, CVE-2025-32434) and no reader of torch compares
checksums. Here the archive's records, its checksums, and every instruction of its pickle are looked at first.
"""

from __future__ import annotations

import hashlib
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lowbit_k2.errors import UserError

RECORDS = ("data.pkl", r"data/\d+", "version", "byteorder", r"\.data/serialization_id", r"\.format_version")
RECORD = re.compile(rf"[^/]+/({'|'.join(RECORDS)}|\.storage_alignment)")
TYPES = ("Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long", "Bool", "Untyped", "Typed")
STORAGE = re.compile(rf"torch(\.storage)? ({'|'.join(TYPES)})Storage")
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
# Instructions that build plain data; GLOBAL is looked at by itself. Protocol 2, which torch writes, has no others.
INSTRUCTIONS = set(
    """
    PROTO STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    SHORT_BINUNICODE SHORT_BINSTRING BINSTRING TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET
    APPEND APPENDS SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT BINPERSID REDUCE BUILD GLOBAL
    """.split()  # noqa: SIM905
)


class DamagedError(UserError):
    """The file is no whole archive of tensors; the text says what is wrong, to be read behind its name."""


class _LateErrors:
    """A file whose errors wait in `error` until they are asked for: one in torch's writer ends the process (1.13)."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """The file is flushed when it is closed."""


def save_tensors(path: Path, content: Any) -> None:
    """`torch.save`. Equal contents give equal bytes: torch is not told the name of the file.

    Raises:
      OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        writer = _LateErrors(file)
        torch.save(content, writer)
        if writer.error is not None:
            raise writer.error


def load_tensors(path: Path) -> Any:
    """What `save_tensors` wrote, onto the CPU; nothing in the file is executed.

    Raises:
      DamagedError: no regular file, damaged, or something else than tensors and plain data.
    """
    if not path.is_file():
        raise DamagedError("is no regular file")
    try:
        with path.open("rb") as file:
            size = _check_archive(file)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except zipfile.BadZipFile as error:
        raise DamagedError(f"is damaged, or no archive of tensors ({error})") from None
    except Exception as error:  # of zipfile, pickle and torch, which have no common class
        reason = " ".join(str(error).split())[:100]
        raise DamagedError(f"cannot be read ({type(error).__name__}: {reason})") from None
    for tensor in tensors_in(content):
        if tensor.numel() * tensor.element_size() > size:
            raise DamagedError(f"names a tensor {tuple(tensor.shape)} that it does not hold")
    return content


def _check_archive(file: BinaryIO) -> int:
    """Look at the records, their checksums and the pickle; returns the bytes of all records.

    Raises:
      DamagedError: something is not as torch writes it.
    """
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        for record in records:
            odd = record.compress_type != zipfile.ZIP_STORED or record.external_attr & 0xFFFF  # marks of folders
            if odd or not RECORD.fullmatch(record.filename):
                raise DamagedError(f"holds {record.filename[:60]!r}, which is no record of tensors: it is not read")
        size = sum(record.file_size for record in records)
        if size > file.seek(0, 2):
            raise DamagedError("holds records that overlap")
        pickles = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or len({record.filename for record in records}) < len(records):
            raise DamagedError("holds no pickle, or records twice")
        damaged = archive.testzip()
        if damaged is not None:
            raise DamagedError(f"is damaged: the checksum of {damaged} is wrong")
        _check_pickle(archive.read(pickles[0]))
    return size


def _check_pickle(data: bytes) -> None:
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in INSTRUCTIONS:
            raise DamagedError(f"is no file of tensors (pickle instruction {instruction.name}): it is not read")
        if instruction.name == "GLOBAL" and not (argument in GLOBALS or STORAGE.fullmatch(argument)):
            raise DamagedError(f"asks for {argument.replace(' ', '.')[:60]!r}, which is no tensor: it is not read")


def tensors_in(content: Any) -> Iterator[Tensor]:
    """All tensors of nested dicts, lists and tuples."""
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value


def tensors_checksum(tensors: Iterable[tuple[str, Tensor]], before: bytes = b"") -> str:
    """SHA-256 of `before`, and of names and values in the order given."""
    found = hashlib.sha256(before)
    for name, tensor in tensors:
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
