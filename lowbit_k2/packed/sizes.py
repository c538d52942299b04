"""What takes how many bytes in a packed file, measured in the file itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from lowbit_k2.packed.contents import FileSizes, PackedModel
from lowbit_k2.packed.errors import PackedFileError
from lowbit_k2.tables import text_table


class Sized(Protocol):
    """A tensor in a file: of a packed one, or of any other that `lowbit_k2.audit` reads."""

    role: str
    encoding: str
    shape: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def num_weights(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Parts(Protocol):
    """A whole file: its size on disk, and what in it is no tensor."""

    total: int

    @property
    def parts(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class SizeRow:
    """Tensors of one role and encoding; `num_bytes` includes their steps and tables. Tied tensors are one.

    float_bytes: what the same tensors take in the float32 file; None without such a file.
    """

    role: str
    encoding: str
    num_tensors: int
    num_weights: int
    num_bytes: int
    float_bytes: int | None = None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.num_bytes / self.num_weights if self.num_weights else 0.0


@dataclass(frozen=True)
class SizeTable:
    """All bytes of a file: `rows` and the parts of `file` add up to `file.total`, the size on disk."""

    rows: tuple[SizeRow, ...]
    file: Parts
    float_file: FileSizes | None = None

    @property
    def num_weights(self) -> int:
        return sum(row.num_weights for row in self.rows)

    @property
    def ratio(self) -> float | None:
        """Bytes of the float32 file / bytes of this file, both as on disk, header and tokens included."""
        return None if self.float_file is None else self.float_file.total / self.file.total

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = [{**asdict(row), "bits_per_weight": row.bits_per_weight} for row in self.rows]
        file, float_file = (None if f is None else {"total": f.total, **f.parts} for f in (self.file, self.float_file))
        plain = {f"float{bits}_ratio": self.ratio_to_numbers(bits) for bits in (32, 16)}
        bits = self.bits_per_weight
        return {"tensors": rows, "file": file, "float_file": float_file, "ratio": self.ratio, "bits": bits, **plain}

    @property
    def bits_per_weight(self) -> float | None:
        """All bytes of the file, header and all, over its parameters."""
        return 8 * self.file.total / self.num_weights if self.num_weights else None

    def ratio_to_numbers(self, bits: int) -> float:
        """Bytes of the parameters alone, as floats of so many bits without any header, over those of this file."""
        return bits / 8 * self.num_weights / self.file.total

    def summary(self) -> str:
        """A line on the whole file."""
        if not self.num_weights:
            return "no parameters"
        plain = (
            f"{bits // 8 * self.num_weights:,} bytes in float{bits} ({self.ratio_to_numbers(bits):.2f}x)"
            for bits in (32, 16)
        )
        return f"{self.bits_per_weight:.2f} bits per parameter; as bare numbers they take {' and '.join(plain)}"

    def __str__(self) -> str:
        """A table by role and encoding."""
        headers = ["role", "encoding", "tensors", "weights", "bits/weight", "bytes", "share", "float32 bytes", "ratio"]
        lines = []
        for row in self.rows:
            counts = [str(row.num_tensors), f"{row.num_weights:,}", f"{row.bits_per_weight:.2f}"]
            lines.append([row.role, row.encoding, *counts, *self._sizes(row.num_bytes, row.float_bytes)])
        for part, num_bytes in self.file.parts.items():
            reference = None if self.float_file is None else self.float_file.parts[part]
            lines.append([f"({part})", "", "", "", "", *self._sizes(num_bytes, reference)])
        number = str(sum(row.num_tensors for row in self.rows))
        bits = f"{8 * self.file.total / self.num_weights:.2f}" if self.num_weights else ""
        reference = None if self.float_file is None else self.float_file.total
        lines.append(["file", "", number, f"{self.num_weights:,}", bits, *self._sizes(self.file.total, reference)])
        columns = 7 if self.float_file is None else len(headers)
        return text_table(headers[:columns], [line[:columns] for line in lines], left=(0, 1))

    def _sizes(self, num_bytes: int, float_bytes: int | None) -> list[str]:
        cells = [f"{num_bytes:,}", f"{100 * num_bytes / self.file.total:.1f}%"]
        if float_bytes is None:
            return [*cells, "", ""]
        return [*cells, f"{float_bytes:,}", f"{float_bytes / num_bytes:.2f}x" if num_bytes else ""]


def size_table(model: PackedModel, reference: PackedModel | None = None) -> SizeTable:
    """Sizes of a model that was read from a file, roles in the order of their first tensor.

    Args:
      model: from `read_packed`.
      reference: the float32 file of the same model, from `read_packed`.
    Raises:
      PackedFileError: `reference` is of another model, or is not float32 throughout.
    """
    assert model.sizes is not None, "sizes are measured in files: read the model with read_packed"
    float_bytes = None if reference is None else _float_bytes(model, reference)
    rows = size_rows(model.tensors, float_bytes)
    return SizeTable(rows, model.sizes, None if reference is None else reference.sizes)


def size_rows(tensors: Iterable[Sized], float_bytes: Mapping[str, int] | None = None) -> tuple[SizeRow, ...]:
    """By role and encoding, roles in the order of their first tensor.

    Args:
      float_bytes: of each tensor in the float32 file, by name.
    """
    groups: dict[tuple[str, str], list[Sized]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.role, tensor.encoding), []).append(tensor)
    roles = list(dict.fromkeys(role for role, _ in groups))
    rows = [
        SizeRow(
            role,
            encoding,
            len(own),
            sum(t.num_weights for t in own),
            sum(t.nbytes for t in own),
            None if float_bytes is None else sum(float_bytes.get(name, 0) for t in own for name in t.names),
        )
        for (role, encoding), own in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: roles.index(row.role)))


def _float_bytes(model: PackedModel, reference: PackedModel) -> dict[str, int]:
    """Bytes of each tensor of the float file by its own name; an alias has none."""
    if model.shapes != reference.shapes:
        raise PackedFileError("the float file holds other tensors than the packed file: export both from one model")
    if any(tensor.encoding != "float32" for tensor in reference.tensors):
        raise PackedFileError("the float file is not float32 throughout: export it as float32 from the same model")
    return {tensor.name: tensor.nbytes for tensor in reference.tensors}
