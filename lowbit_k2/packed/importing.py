"""Low-bit weights of others to packed tensors, without any loss: safetensors files of linear stacks of any origin.

Two forms are known. Codes: a tensor of signed integers (or of floats that are integers) with its scales beside it,
weight = code * scale. Values: a tensor of floats that are -s, 0 and s, or -s and s, with one s for the tensor, for each
row, or for each 64 columns of a row; or of at most 16 different floats. All else stays float, exactly.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import safetensors

from lowbit_k2.core.encodings import ENCODINGS, encoding_of, tensor_bytes
from lowbit_k2.core.grids import BLOCK, GRANULARITIES, group_shape, matrix_shape
from lowbit_k2.packed.errors import PackedFileError
from lowbit_k2.packed.tensors import PackedTensor
from lowbit_k2.tables import text_table

FLOATS = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
SIGNED = {"I8": np.dtype("i1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
SCALE_NAMES = ("_scale", "_scales", ".scale", ".scales")  # behind a weight's name
STEM = ".weight"  # in the place of which scale and scales stand, too
MAX_TABLE = 16  # different values of a tensor that become places in a table
GLANCE = 1 << 12  # weights that tell most tensors with more from those with fewer
BLOCKS = "block64"
SKIP = "leave it out with --skip"


@dataclass(frozen=True)
class Imported:
    """A tensor, what its numbers were in the source ("F32", "I8 * BF16"), and why it has stayed float."""

    tensor: PackedTensor
    source: str
    reason: str = ""


class _Source:
    """A safetensors file, mapped into memory.

    entries: dtype, shape and place of each tensor, by name.
    """

    def __init__(self, path: Path) -> None:
        """Raises:
        PackedFileError: it is missing, damaged, or no safetensors file.
        """
        try:
            with safetensors.safe_open(str(path), framework="numpy"):  # checks the header and all places
                pass
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, safetensors.SafetensorError) as error:
            raise PackedFileError(f"{path} cannot be read as safetensors: {error}") from None
        self._start = 8 + int.from_bytes(self._data[:8], "little")
        header = json.loads(self._data[8 : self._start])
        self.entries: Mapping[str, dict] = {name: header[name] for name in header if name != "__metadata__"}

    def dtype(self, name: str) -> str:
        return self.entries[name]["dtype"]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.entries[name]["shape"])

    def array(self, name: str) -> np.ndarray:
        """Signed integers as they are; floats as float32.

        Raises:
          PackedFileError: numbers of another type, or that float32 cannot hold.
        """
        dtype, place = self.dtype(name), self.entries[name]["data_offsets"][0]
        kind = {**FLOATS, **SIGNED}.get(dtype)
        if kind is None:
            known = ", ".join((*FLOATS, *SIGNED))
            raise PackedFileError(f"tensor {name}: numbers of type {dtype}: {known} are read; {SKIP}, or unpack it")
        shape = self.shape(name)
        if 0 in shape:
            raise PackedFileError(f"tensor {name} is empty: {SKIP}")
        raw = np.frombuffer(self._data, kind, int(np.prod(shape, dtype=np.int64)), self._start + place)
        if dtype == "BF16":  # the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        raw = raw.reshape(shape)
        if dtype in SIGNED:
            return raw
        with np.errstate(over="ignore"):
            values = raw.astype(np.float32)
        if not np.isfinite(values).all():
            raise PackedFileError(f"tensor {name}: its numbers must be finite in float32: {SKIP}")
        if dtype == "F64" and not (values == raw).all():
            raise PackedFileError(f"tensor {name}: float32 would round its numbers: convert it, or {SKIP}")
        return values


def import_tensors(path: str | Path, skip: Sequence[str] = ()) -> list[Imported]:
    """All tensors of a safetensors file, in its order, scales within their weights.

    Weights come back bit by bit from `dequantize`, but for the sign of a zero.

    Args:
      skip: patterns of names (`*`, `?`) that are left out.
    Raises:
      PackedFileError: the file cannot be read, or a tensor, which is named, cannot be stored without a loss.
    """
    source = _Source(Path(path))
    names = [name for name in source.entries if not any(fnmatchcase(name, pattern) for pattern in skip)]
    scales = {name: scale for name in names if (scale := _scale_of(name, source)) is not None}
    found = []
    for name in names:
        if name in scales.values():
            continue
        array, dtype = source.array(name), source.dtype(name)
        if name in scales:
            tensor = _from_codes(name, array, source.array(scales[name]))
            found.append(Imported(tensor, f"{dtype} * {source.dtype(scales[name])}"))
        elif dtype in SIGNED:
            stem = name.removesuffix(STEM)
            beside = f"{name}_scale, {name}.scale or {stem}.scale"
            raise PackedFileError(f"tensor {name}: integers without scales beside them ({beside}): {SKIP}")
        else:
            found.append(Imported(*_from_values(name, array, dtype)))
    return found


def _scale_of(name: str, source: _Source) -> str | None:
    """The tensor that holds a weight's scales; None where there is none, or the weight holds no integers.

    Raises:
      PackedFileError: there are several.
    """
    if source.dtype(name) not in (*SIGNED, *FLOATS) or len(source.shape(name)) < 2:
        return None
    names = [name + ending for ending in SCALE_NAMES]
    if name.endswith(STEM):
        names += [name.removesuffix(STEM) + ending for ending in SCALE_NAMES if ending.startswith(".")]
    there = [scale for scale in names if scale in source.entries and source.dtype(scale) in FLOATS]
    if there and source.dtype(name) in FLOATS:
        array = source.array(name)
        there = there if (np.rint(array) == array).all() else []
    if len(there) > 1:
        raise PackedFileError(f"tensor {name}: {' and '.join(there)} could both be its scales: {SKIP} for one")
    return there[0] if there else None


def _from_codes(name: str, codes: np.ndarray, scale: np.ndarray) -> PackedTensor:
    """weight = code * scale; a negative scale turns its codes' signs, a scale of zero makes them zero.

    Args:
      codes: (N, ...) integers of any type; scale: float32.
    """
    step, granularity = _steps(name, codes.shape, scale)
    scales = _spread(step, granularity, codes.shape)
    signed = codes * np.sign(scales)
    step = np.where(step == 0, np.float32(1), np.abs(step))
    low, high = signed.min(), signed.max()
    encoding = next((e for e in map(encoding_of, range(1, 9)) if e.codes[0] <= low and high <= e.codes[1]), None)
    if encoding is None:
        raise PackedFileError(f"tensor {name}: codes from {low:.0f} to {high:.0f}: -128 to 127 can be stored; {SKIP}")
    if encoding.name == "binary" and (signed == 0).any():
        encoding = ENCODINGS["ternary"]
    tensor = PackedTensor.from_codes(name, _role(codes), encoding.name, signed.astype(np.int8), step, granularity)
    if not (tensor.dequantize() == codes.astype(np.float32) * scales).all():
        raise PackedFileError(f"tensor {name}: its weights would be rounded: {SKIP}")
    return tensor


def _steps(name: str, shape: tuple[int, ...], scale: np.ndarray) -> tuple[np.ndarray, str]:
    """Steps, perhaps negative or zero, and their granularity.

    Raises:
      PackedFileError: scales of another shape than a packed tensor has.
    """
    rows, cols = matrix_shape(shape)
    if scale.size == 1:
        return scale.reshape(()), "tensor"
    if scale.shape[0] == rows == scale.size:
        return scale.reshape(rows), "channel"
    groups = scale.size // rows
    if scale.ndim >= 2 and scale.shape[0] == rows and groups and cols % groups == 0:
        width = cols // groups
        if width % BLOCK == 0:
            return np.repeat(scale.reshape(rows, groups), width // BLOCK, axis=1), BLOCKS
        can = f"{BLOCK} columns or a multiple of it, a row, or all"
        raise PackedFileError(f"tensor {name}: a scale for {width} columns: it may be for {can}; {SKIP}")
    raise PackedFileError(f"tensor {name} of shape {shape}: scales of shape {scale.shape} do not fit its rows: {SKIP}")


def _spread(steps: np.ndarray, granularity: str, shape: tuple[int, ...]) -> np.ndarray:
    """Steps that broadcast against a tensor."""
    rows, cols = matrix_shape(shape)
    if granularity == "tensor":
        return steps
    if granularity == "channel":
        return steps.reshape(rows, *(1,) * (len(shape) - 1))
    return np.repeat(steps, BLOCK, axis=1)[:, :cols].reshape(shape)


def _from_values(name: str, values: np.ndarray, source: str) -> tuple[PackedTensor, str, str]:
    """values: float32 of any shape. The arguments of `Imported`."""
    if values.ndim < 2:
        return _as_floats(name, values), source, "no matrix"
    for granularity in GRANULARITIES:
        tensor = _on_grid(name, values, granularity)
        if tensor is not None:
            return tensor, source, ""
    few = np.unique(values.ravel()[:GLANCE])
    if len(few) <= MAX_TABLE:
        few = np.unique(values)
    if len(few) > MAX_TABLE:
        return _as_floats(name, values), source, f"over {MAX_TABLE} values, not -s, 0, s"
    codes = np.searchsorted(few, values).astype(np.uint8)
    encoding = encoding_of(max(1, int(len(few) - 1).bit_length()), is_index=True)
    if tensor_bytes(values.shape, encoding, "tensor", len(few)) >= values.nbytes:
        return _as_floats(name, values), source, "smaller so"
    one = np.float32(1)
    return PackedTensor.from_codes(name, _role(values), encoding.name, codes, one, table=few), source, ""


def _on_grid(name: str, values: np.ndarray, granularity: str) -> PackedTensor | None:
    """A binary or ternary tensor; None where a group has further values, or floats would take no more bytes."""
    largest = _largest(values, granularity)
    spread = _spread(largest, granularity, values.shape)
    if not ((np.abs(values) == spread) | (values == 0)).all():
        return None
    codes = np.sign(values).astype(np.int8)
    encoding = ENCODINGS["ternary" if (codes == 0).any() else "binary"]
    if tensor_bytes(values.shape, encoding, granularity) >= values.nbytes:
        return None
    step = np.where(largest == 0, np.float32(1), largest)
    return PackedTensor.from_codes(name, _role(values), encoding.name, codes, step, granularity)


def _largest(values: np.ndarray, granularity: str) -> np.ndarray:
    """Largest absolute value of each group, in the shape of steps."""
    sizes = np.abs(values.reshape(matrix_shape(values.shape)))
    if granularity == BLOCKS:
        columns = range(0, sizes.shape[1], BLOCK)
        return np.maximum.reduceat(sizes, columns, axis=1).reshape(group_shape(values.shape, BLOCKS))
    return sizes.max() if granularity == "tensor" else sizes.max(axis=1)


def _as_floats(name: str, values: np.ndarray) -> PackedTensor:
    """In float16 where that holds them exactly."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    encoding = "float16" if (half.astype(np.float32) == values).all() else "float32"
    return PackedTensor.from_values(name, "other", encoding, values)


def _role(array: np.ndarray) -> str:
    return "linear" if array.ndim == 2 else "convolution"


def import_table(found: Sequence[Imported]) -> str:
    """What became of each tensor."""
    headers = ["tensor", "shape", "source", "packed", "scale per", "bits/weight", "bytes", "stays float"]
    return text_table(headers, list(map(list, _rows(found))), left=(0, 1, 2, 3, 4, 7))


def _rows(found: Sequence[Imported]) -> Iterator[tuple[str, ...]]:
    per = {"tensor": "tensor", "channel": "row", BLOCKS: f"{BLOCK} columns"}
    for imported in found:
        tensor = imported.tensor
        bits = f"{8 * tensor.nbytes / tensor.num_weights:.2f}"
        scale = "" if tensor.is_float else per[tensor.granularity]
        shape = " x ".join(map(str, tensor.shape)) or "one number"
        yield tensor.name, shape, imported.source, tensor.encoding, scale, bits, f"{tensor.nbytes:,}", imported.reason
