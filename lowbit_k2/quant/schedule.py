"""Precisions as users write them, and stochastic precision: which layers draw 1 bit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from lowbit_k2.core.grids import PRECISIONS
from lowbit_k2.errors import UserError

SP_SCHEDULES = ("log", "linear", "constant")

# P(1 bit) at the first and the last layer. "log": the authors' code writes ln(linspace(e^0.2, e^0.8, L) / 0.9), which
# is ln(linspace(e^a, e^b, L)) with a = 0.2 - ln 0.9 and b = 0.8 - ln 0.9. "linear": the range that the paper reports.
_ENDPOINTS = {"log": (0.2 - math.log(0.9), 0.8 - math.log(0.9)), "linear": (0.2, 0.9), "constant": (0.5, 0.5)}


def parse_precision(text: str, num_layers: int) -> int | list[int]:
    """Read `--precision`.

    "1", "2", "4", "16", "32"   one precision, returned as an int
    "1.5"                       the first floor(L/2) layers at 1 bit, the others at 2
    "1.5r"                      the same list reversed: the last floor(L/2) layers at 1 bit
    "1,1,2,2"                   one precision per layer

    Raises:
      UserError: anything else, or a list whose length is not the number of layers.
    """
    text = text.strip()
    if text in ("1.5", "1.5r"):
        bits = [1] * (num_layers // 2) + [2] * (num_layers - num_layers // 2)
        return bits if text == "1.5" else bits[::-1]
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) in PRECISIONS for part in parts):
        known = ", ".join(str(bits) for bits in PRECISIONS)
        raise UserError(f"precision {text!r}: give one of {known}, 1.5, 1.5r, or one of them per layer, as 1,1,2,2")
    if len(parts) == 1:
        return int(parts[0])
    if len(parts) != num_layers:
        raise UserError(f"precision {text!r} names {len(parts)} layers, the model has {num_layers}")
    return [int(part) for part in parts]


def sp_probabilities(
    num_layers: int, schedule: str = "log", first: float | None = None, last: float | None = None
) -> list[float]:
    """P(the layer draws the low precision), per layer, rising with depth.

    Args:
      schedule: "log", the authors' ln(linspace(e^0.2, e^0.8, L) / 0.9) = .305 .. .905; "linear", 0.2 .. 0.9;
        "constant", 0.5.
      first, last: other probabilities for the first and the last layer ("constant" takes `first` alone).
    Returns:
      num_layers probabilities. A single layer gets the mean of `first` and `last`.
    Raises:
      UserError: unknown schedule, or an endpoint outside [0, 1].
    """
    if schedule not in SP_SCHEDULES:
        raise UserError(f"stochastic-precision schedule {schedule!r}: choose one of {', '.join(SP_SCHEDULES)}")
    default_first, default_last = _ENDPOINTS[schedule]
    first = default_first if first is None else first
    last = default_last if last is None else last
    if not (0.0 <= first <= 1.0 and 0.0 <= last <= 1.0):
        raise UserError(f"stochastic-precision probabilities {first}, {last} must lie between 0 and 1")
    if schedule == "constant":
        return [first] * num_layers
    if num_layers == 1:
        return [(first + last) / 2]
    depths = [i / (num_layers - 1) for i in range(num_layers)]
    if schedule == "linear":
        return [first + (last - first) * depth for depth in depths]
    low, high = math.exp(first), math.exp(last)
    return [math.log(low + (high - low) * depth) for depth in depths]


def draw_sp(probabilities: Sequence[float], generator: torch.Generator, low: int = 1, high: int = 2) -> list[int]:
    """One independent draw per layer: `low` bits with its probability, else `high` bits.

    The generator is the caller's own and on the CPU, so that all ranks draw alike and a resumed run continues it.
    """
    uniform = torch.rand(len(probabilities), generator=generator, dtype=torch.float64).tolist()
    return [low if u < p else high for u, p in zip(uniform, probabilities, strict=True)]


def generator_seed(purpose: str, seed: int, number: int) -> int:
    """Seed of a CPU generator for draw `number` of one purpose, below 2^32.

    torch's CPU generator takes the lower 32 bits of a seed and drops the others without a word, so that numbers put
    together by shifts would give all runs the same draws.
    """
    digest = hashlib.blake2b(f"{purpose}/{seed}/{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
