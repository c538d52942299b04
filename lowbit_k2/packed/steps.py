"""What the next precision down would save, role by role: where the bytes of a file still are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from lowbit_k2.core.encodings import ENCODINGS, encoding_of, tensor_bytes
from lowbit_k2.core.grids import FLOAT_BITS, HALF_BITS
from lowbit_k2.packed.sizes import Sized
from lowbit_k2.tables import text_table

LADDER = (FLOAT_BITS, HALF_BITS, 8, 4, 2, 1)
FLOAT_BYTES, HALF_BYTES = 4, 2
OTHER_BITS = {"float64": 64, "bfloat16": HALF_BITS, "uint8": 8, "uint4": 4, "int2": 2, "uint2": 2}  # of other files


@dataclass(frozen=True)
class Step:
    """All tensors of a role and encoding, written in the next encoding down: plain codes, float32 steps.

    saved: bytes.
    total: of the file then.
    ratio: bytes of the parameters in float32, alone, over that.
    """

    role: str
    encoding: str
    to: str
    num_weights: int
    saved: int
    total: int
    ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def next_steps(tensors: Iterable[Sized], total: int) -> list[Step]:
    """A row for each role and encoding that can go down, the largest gain first.

    Vectors stop at float16, as the presets have it. Steps are per channel at 8 and 4 bits, per tensor below; a tensor
    that has finer ones keeps them.

    Args:
      tensors: all of a file.
      total: bytes of the file.
    """
    tensors = list(tensors)
    float_bytes = FLOAT_BYTES * sum(tensor.num_weights for tensor in tensors)
    groups: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for tensor in tensors:
        bits = _next_bits(tensor)
        if bits is not None:
            encoding = encoding_of(bits, tensor.encoding.startswith("index"))
            table = 2**bits if encoding.is_index else 0
            after = tensor_bytes(tensor.shape, encoding, _granularity(tensor, bits), table)
            found = groups.setdefault((tensor.role, tensor.encoding, encoding.name), [])
            found.append((tensor.num_weights, tensor.nbytes - after))
    steps = []
    for (role, encoding, to), members in groups.items():
        weights, saved = map(sum, zip(*members, strict=True))
        steps.append(Step(role, encoding, to, weights, saved, total - saved, float_bytes / (total - saved)))
    return sorted(steps, key=lambda step: -step.saved)


def _next_bits(tensor: Sized) -> int | None:
    known = ENCODINGS.get(tensor.encoding)
    bits = OTHER_BITS.get(tensor.encoding) if known is None else known.bits or 2  # ternary is no stream of bits
    if bits is None or not tensor.num_weights:
        return None
    below = next((rung for rung in LADDER if rung < bits), None)
    return None if below is not None and below < HALF_BITS and len(tensor.shape) < 2 else below


def _granularity(tensor: Sized, bits: int) -> str:
    own = getattr(tensor, "granularity", "tensor")
    return "channel" if own == "tensor" and bits in (4, 8) else own


def format_steps(steps: Iterable[Step]) -> str:
    """A table for a terminal."""
    head = ["next step down", "from", "to", "weights", "bytes saved", "file then", "then, against float32"]
    rows = [
        [s.role, s.encoding, s.to, f"{s.num_weights:,}", f"{s.saved:,}", f"{s.total:,}", f"{s.ratio:.2f}x"]
        for s in steps
    ]
    return text_table(head, rows, left=(0, 1, 2))
