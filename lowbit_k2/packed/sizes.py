"""What takes how many bytes in a packed file, measured in the file itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lowbit_k2.packed.contents import FileSizes, PackedModel
from lowbit_k2.packed.errors import PackedFileError
from lowbit_k2.tables import text_table


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
        return 8 * self.num_bytes / self.num_weights


@dataclass(frozen=True)
class SizeTable:
    """All bytes of a file: `rows`, and header, index and tokens of `file`, add up to `file.total`, the size on disk."""

    rows: tuple[SizeRow, ...]
    file: FileSizes
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
        float_file = None if self.float_file is None else asdict(self.float_file)
        return {"tensors": rows, "file": asdict(self.file), "float_file": float_file, "ratio": self.ratio}

    def __str__(self) -> str:
        """A table by role and encoding."""
        headers = ["role", "encoding", "tensors", "weights", "bits/weight", "bytes", "share", "float32 bytes", "ratio"]
        lines = []
        for row in self.rows:
            counts = [str(row.num_tensors), f"{row.num_weights:,}", f"{row.bits_per_weight:.2f}"]
            lines.append([row.role, row.encoding, *counts, *self._sizes(row.num_bytes, row.float_bytes)])
        for part in ("header", "index", "tokens"):
            reference = None if self.float_file is None else getattr(self.float_file, part)
            lines.append([f"({part})", "", "", "", "", *self._sizes(getattr(self.file, part), reference)])
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
    groups: dict[tuple[str, str], list] = {}
    for tensor in model.tensors:
        groups.setdefault((tensor.role, tensor.encoding), []).append(tensor)
    roles = list(dict.fromkeys(role for role, _ in groups))
    rows = [
        SizeRow(
            role,
            encoding,
            len(tensors),
            sum(t.num_weights for t in tensors),
            sum(t.nbytes for t in tensors),
            None if float_bytes is None else sum(float_bytes.get(name, 0) for t in tensors for name in t.names),
        )
        for (role, encoding), tensors in groups.items()
    ]
    rows.sort(key=lambda row: roles.index(row.role))
    return SizeTable(tuple(rows), model.sizes, None if reference is None else reference.sizes)


def _float_bytes(model: PackedModel, reference: PackedModel) -> dict[str, int]:
    """Bytes of each tensor of the float file by its own name; an alias has none."""
    shapes, expected = ({n: t.shape for t in m.tensors for n in t.names} for m in (model, reference))
    if shapes != expected:
        raise PackedFileError("the float file holds other tensors than the packed file: export both from one model")
    if any(tensor.encoding != "float32" for tensor in reference.tensors):
        raise PackedFileError("the float file is not float32 throughout: export it as float32 from the same model")
    return {tensor.name: tensor.nbytes for tensor in reference.tensors}
