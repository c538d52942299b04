"""What an audit gives: the tensors of a file, and its other bytes by what they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lowbit_k2.packed import EntropyRow, SizeTable, code_entropy, size_rows, sum_entropy
from lowbit_k2.quant.rules import NAME_RULES, match_role

CODES = ("int8", "uint8", "int4", "uint4", "int2", "uint2")
PARAMETERS = ("float64", "float32", "float16", "bfloat16", *CODES)  # integers that are wider count or index something


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A parameter as a file holds it.

    encoding: type of its numbers.
    nbytes: in the file; its scales and zero points included where it has such. 0 for one whose bytes are another's.
    codes: 8 bits each, whatever they take in the file; None for floats.
    """

    name: str
    role: str
    encoding: str
    shape: tuple[int, ...]
    nbytes: int
    codes: np.ndarray | None = None
    granularity: str = "tensor"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    def entropy(self) -> EntropyRow | None:
        """Of its codes; None for floats."""
        if self.codes is None or not self.codes.size:
            return None
        bits = self.num_weights * code_entropy(self.codes)
        return EntropyRow(self.encoding, self.num_weights, 8 * self.nbytes, bits)


@dataclass(frozen=True)
class FileAudit:
    """All bytes of a file once: the tensors' and `parts` add up to `total`, the size on disk.

    kind: of the file, to be read behind its name.
    parts: bytes by what they are.
    """

    kind: str
    total: int
    tensors: tuple[StoredTensor, ...]
    parts: dict[str, int]

    def __post_init__(self) -> None:
        found = sum(t.nbytes for t in self.tensors) + sum(self.parts.values())
        assert found == self.total and min(self.parts.values(), default=0) >= 0, (found, self.total, self.parts)

    @cached_property
    def table(self) -> SizeTable:
        return SizeTable(size_rows(self.tensors), self)

    def entropy(self) -> list[EntropyRow]:
        """By encoding, and "all"."""
        return sum_entropy([row for row in (tensor.entropy() for tensor in self.tensors) if row is not None])


def guess_role(name: str, shape: tuple[int, ...]) -> str:
    """By this project's names where they fit, whatever a wrapper put before them, else "matrix" or "vector"."""
    parts = name.split(".")
    found = (match_role(NAME_RULES, ".".join(parts[place:])) for place in range(len(parts)))
    role = next((role for role in found if role is not None), None)
    vector = len(shape) < 2
    if role is None or (vector and role not in ("norm", "bias")):
        return "vector" if vector else "matrix"
    return role
