"""Every byte of a torch archive (.pt): the model's tensors, those of other sections, the pickle, and the zip around."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lowbit_k2.audit.stored import CODES, PARAMETERS, FileAudit, StoredTensor, guess_role
from lowbit_k2.errors import UserError
from lowbit_k2.quant import plain_name
from lowbit_k2.tensorfile import DamagedError, load_tensors, tensors_in

MODEL_KEYS = ("model", "state_dict", "model_state_dict")  # where the parameters are, in files that hold more
LEARNED = "quantizer"  # role of what a quantizer learns: alphas, tables, statistics


def audit_checkpoint(path: Path) -> FileAudit:
    """Read the tensors, without running anything in the file, and count.

    A storage that several tensors share counts for the first one, the model's before all others.

    Raises:
      UserError: missing, damaged, or more than tensors and plain data in it.
    """
    try:
        content = load_tensors(path)
    except DamagedError as error:
        raise UserError(f"{path} {error}: give a checkpoint of tensors, as state_dict() makes them") from None
    key = next((k for k in MODEL_KEYS if isinstance(content, Mapping) and isinstance(content.get(k), Mapping)), None)
    seen: set[int] = set()
    known = set()
    tensors, parts = [], {"other tensors": 0}
    for name, tensor in named_tensors(content if key is None else content[key]):
        num_bytes, encoding = _new_bytes(tensor, seen), str(tensor.dtype).removeprefix("torch.")
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        if tensor.numel() and place in known:
            continue  # another name of the same tensor
        known.add(place)
        if encoding in PARAMETERS:
            tensors.append(_stored(name, tensor, encoding, num_bytes))
        else:
            parts["other tensors"] += num_bytes
    if key is not None:
        for section in (k for k in content if k != key):
            found = sum(_new_bytes(tensor, seen) for tensor in tensors_in(content[section]))
            if found:
                parts[str(section)] = found
    with zipfile.ZipFile(path) as archive:
        records = {record.filename.partition("/")[2]: record.file_size for record in archive.infolist()}
    data = sum(size for name, size in records.items() if name.startswith("data/"))
    used = sum(t.nbytes for t in tensors) + sum(parts.values())
    parts["pickle"] = records["data.pkl"]
    parts["unused"] = data - used  # storages of no tensor
    total = path.stat().st_size
    parts["zip"] = total - data - records["data.pkl"]  # headers, alignment, directory, version
    return FileAudit("torch archive", total, tuple(tensors), parts)


def named_tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested mappings and sequences by their dotted names."""
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, (Mapping, list, tuple)):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for name, value in items:
            yield from named_tensors(value, f"{prefix}.{name}" if prefix else str(name))


def _stored(key: str, tensor: Tensor, encoding: str, num_bytes: int) -> StoredTensor:
    name, shape = plain_name(key), tuple(tensor.shape)
    role = LEARNED if name is None else guess_role(name, shape)
    codes = tensor.numpy().reshape(-1).view(np.uint8) if encoding in CODES else None
    return StoredTensor(key, role, encoding, shape, num_bytes, codes)


def _new_bytes(tensor: Tensor, seen: set[int]) -> int:
    """Bytes of the tensor's storage that no tensor before has counted."""
    storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()  # torch 1.13
    if not storage.nbytes() or storage.data_ptr() in seen:
        return 0
    seen.add(storage.data_ptr())
    return storage.nbytes()
