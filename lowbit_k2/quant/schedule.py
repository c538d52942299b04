"""Stochastic precision: which layers draw how many bits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from lowbit_k2.errors import UserError

SP_SCHEDULES = ("log", "linear", "constant")

# P(1 bit) at the first and the last layer. "log": the authors' code writes ln(linspace(e^0.2, e^0.8, L) / 0.9), which
# is ln(linspace(e^a, e^b, L)) with a = 0.2 - ln 0.9 and b = 0.8 - ln 0.9. "linear": the range that the paper reports.
_ENDPOINTS = {"log": (0.2 - math.log(0.9), 0.8 - math.log(0.9)), "linear": (0.2, 0.9), "constant": (0.5, 0.5)}


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


def draw_sp(
    probabilities: Sequence[float], generator: torch.Generator, precisions: Sequence[int] = (2, 1)
) -> list[int]:
    """One independent draw per layer out of `precisions`, from high to low.

    Of k + 1 precisions a layer takes the one whose place is the number of successes in k draws with its probability:
    for two of them, the lower one with that probability. The generator is the caller's own and on the CPU, so that all
    ranks draw alike and a resumed run continues it; it gives one number per draw and layer, draw by draw.

    Raises:
      UserError: no precision, or an order that is not from high to low.
    """
    precisions = list(precisions)
    if not precisions or precisions != sorted(set(precisions), reverse=True):
        raise UserError(f"stochastic precision takes different precisions from high to low, not {precisions}")
    places = [0] * len(probabilities)
    for _ in precisions[1:]:
        uniform = torch.rand(len(probabilities), generator=generator, dtype=torch.float64).tolist()
        places = [place + (u < p) for place, u, p in zip(places, uniform, probabilities, strict=True)]
    return [precisions[place] for place in places]


def generator_seed(purpose: str, seed: int, number: int) -> int:
    """Seed of a CPU generator for draw `number` of one purpose, below 2^32.

    torch's CPU generator takes the lower 32 bits of a seed and drops the others without a word, so that numbers put
    together by shifts would give all runs the same draws.
    """
    digest = hashlib.blake2b(f"{purpose}/{seed}/{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
