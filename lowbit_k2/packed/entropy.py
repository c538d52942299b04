"""How much the codes of a packed file hold, beside what they take: the bound of any coding of single weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lowbit_k2.packed.contents import PackedModel
from lowbit_k2.packed.tensors import PackedTensor
from lowbit_k2.tables import text_table


@dataclass(frozen=True)
class EntropyRow:
    """The codes of one encoding, or all; steps and tables are not counted.

    num_bits: in the file.
    entropy: bits, each tensor by the shares of its own codes.
    """

    encoding: str
    num_weights: int
    num_bits: int
    entropy: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def code_entropy(codes: np.ndarray) -> float:
    """-sum p log2 p of integer codes of 8 bits, in bits per weight."""
    counts = np.bincount(codes.reshape(-1).view(np.uint8), minlength=256)
    shares = counts[counts > 0] / codes.size
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def entropy_rows(model: PackedModel) -> list[EntropyRow]:
    """A row for each encoding of codes, and "all" behind them; none for a file without codes.

    Raises:
      PackedFileError: bytes that no writer makes.
    """
    return sum_entropy([_measure(tensor) for tensor in model.tensors if not tensor.is_float])


def sum_entropy(tensors: Sequence[EntropyRow]) -> list[EntropyRow]:
    """Rows of single tensors to one for each encoding, and "all" behind them."""
    groups: dict[str, list[EntropyRow]] = {}
    for row in tensors:
        groups.setdefault(row.encoding, []).append(row)
    rows = [_sum(name, members) for name, members in groups.items()]
    return [*rows, _sum("all", rows)] if rows else []


def format_entropy(rows: Iterable[EntropyRow]) -> str:
    """A table in bits per weight."""
    lines = [
        [row.encoding, f"{row.num_weights:,}", f"{row.num_bits / row.num_weights:.2f}", _per_weight(row)]
        for row in rows
    ]
    return text_table(["codes", "weights", "bits/weight", "entropy"], lines, left=(0,))


def _per_weight(row: EntropyRow) -> str:
    return f"{row.entropy / row.num_weights:.2f}"


def _measure(tensor: PackedTensor) -> EntropyRow:
    weights = tensor.num_weights
    return EntropyRow(tensor.encoding, weights, 8 * tensor.code_bytes, weights * code_entropy(tensor.codes))


def _sum(name: str, rows: list[EntropyRow]) -> EntropyRow:
    numbers = zip(*((row.num_weights, row.num_bits, row.entropy) for row in rows), strict=True)
    return EntropyRow(name, *map(sum, numbers))
