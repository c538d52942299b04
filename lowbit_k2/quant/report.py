"""QuantReport: every parameter tensor once, with its role, precisions and estimated size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from lowbit_k2.core.encodings import encoding_of, tensor_bytes
from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.quant.config import SAME
from lowbit_k2.tables import text_table


@dataclass(frozen=True)
class ReportRow:
    """One parameter tensor.

    scale: statistic, or the quantizer's name where it is not linear.
    reason: why it stays float32; None for quantized tensors.
    input_bits: of the input of its module; 0 for float inputs, "same" where they follow the weight.
    is_index: codes are places in a table of 2^bits entries.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    bits: tuple[int, ...]
    switched: bool = False
    scale: str | None = None
    granularity: str = "tensor"
    reason: str | None = None
    input_bits: int | str = 0
    is_index: bool = False

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    def bits_at(self, precision: int) -> int:
        """Bits of this tensor when the model runs at `precision`: switched tensors follow where they have it."""
        if precision == FLOAT_BITS:
            return FLOAT_BITS
        return precision if self.switched and precision in self.bits else self.bits[0]

    def bytes_at(self, precision: int) -> int:
        """Estimated bytes on disk, steps included: rows = dimension 0, each padded to whole bytes."""
        bits = self.bits_at(precision)
        encoding = encoding_of(bits, self.is_index)
        return tensor_bytes(self.shape, encoding, self.granularity, 2**bits if encoding.is_index else 0)


GRID_BYTES = 3 * 4  # step, threshold, sign


@dataclass(frozen=True)
class ActivationRow:
    """One activation with a learned grid; a dynamic one has nothing to store and stands with its weight.

    name: `<module>.input_quantizers.<operand>`.
    role: of the weight that it is multiplied by, or "product".
    bits: its precisions.
    switched: whether it follows `use_precision`; else it keeps its one precision, but for 32.
    """

    name: str
    role: str
    bits: tuple[int, ...]
    switched: bool = False


@dataclass(frozen=True)
class QuantReport:
    """What `quantize_model` did. Sizes are estimates of the packed payload; measured ones come from the file itself.

    precisions: the switched precisions of the config.
    num_alphas: learnable scalars that quantization added.
    activations: those with learned grids.
    """

    name: str
    precisions: tuple[int, ...]
    rows: tuple[ReportRow, ...]
    num_alphas: int = 0
    activations: tuple[ActivationRow, ...] = ()
    columns: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(dict.fromkeys((FLOAT_BITS, *self.precisions))))

    @property
    def num_weights(self) -> int:
        """Parameters of the unquantized model."""
        return sum(row.num_weights for row in self.rows)

    @property
    def roles(self) -> list[str]:
        return list(dict.fromkeys(row.role for row in self.rows))

    def bytes_at(self, precision: int, role: str | None = None) -> int:
        """Estimated bytes of the model, or of one role, at a precision; 32 is the float model."""
        grids = self.grid_bytes(precision) if role is None else 0
        return grids + sum(row.bytes_at(precision) for row in self.rows if role in (None, row.role))

    def grid_bytes(self, precision: int) -> int:
        """Of the learned grids of activations; the float model has none."""
        return 0 if precision == FLOAT_BITS else GRID_BYTES * len(self.activations)

    def ratio(self, precision: int) -> float:
        """Estimated float32 bytes / bytes at `precision`, without header, tokens and settings."""
        return self.bytes_at(FLOAT_BITS) / self.bytes_at(precision)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: totals by role and precision, and one entry per tensor."""
        return {
            "name": self.name,
            "estimated_bytes": {role: {str(p): self.bytes_at(p, role) for p in self.columns} for role in self.roles},
            "num_alphas": self.num_alphas,
            "activations": [asdict(row) for row in self.activations],
            "tensors": [
                {
                    "name": row.name,
                    "role": row.role,
                    "shape": list(row.shape),
                    "bits": list(row.bits),
                    "estimated_bytes": {str(p): row.bytes_at(p) for p in self.columns},
                    "reason": row.reason,
                    "input_bits": row.input_bits,
                }
                for row in self.rows
            ],
        }

    def __str__(self) -> str:
        """A table by role."""
        header = ["role", "tensors", "weights", "bits", *(f"kB at {p} bit" for p in self.columns), "why float"]
        body = [self._role_line(role) for role in self.roles]
        body += self._activation_lines()
        totals = [f"{self.bytes_at(p) / 1000:.1f}" for p in self.columns]
        body.append(["all", str(len(self.rows)), str(self.num_weights), "", *totals, ""])
        ratios = [f"{self.ratio(p):.2f}x" for p in self.columns]
        body.append(["ratio", "", "", "", *ratios, ""])
        note = (
            f"{self.name}: estimate of the packed payload, without header, tokens and settings (measured sizes come "
            f"from packed files); {self.num_alphas} alphas learned besides the weights"
        )
        return f"{text_table(header, body, left=(0, len(header) - 1))}\n{note}"

    def _activation_lines(self) -> list[list[str]]:
        """Inputs with learned grids, as a line of their own where there are such."""
        if not self.activations:
            return []
        bits = _join("/".join(map(str, row.bits)) for row in self.activations)
        sizes = [f"{self.grid_bytes(p) / 1000:.1f}" for p in self.columns]
        return [["activations", str(len(self.activations)), "", bits, *sizes, ""]]

    def _role_line(self, role: str) -> list[str]:
        rows = [row for row in self.rows if row.role == role]
        bits = _join("/".join(str(b) for b in row.bits) + _input_note(row) for row in rows)
        sizes = [f"{self.bytes_at(p, role) / 1000:.1f}" for p in self.columns]
        reasons = _join(row.reason for row in rows if row.reason)
        return [role, str(len(rows)), str(sum(row.num_weights for row in rows)), bits, *sizes, reasons]


def _input_note(row: ReportRow) -> str:
    """Behind the bits of the weights: " in8" for inputs of 8 bits."""
    if row.input_bits == SAME:
        return " in same"
    return f" in{row.input_bits}" if row.input_bits else ""


def _join(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))
