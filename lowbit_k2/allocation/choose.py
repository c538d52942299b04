"""The best precisions under a budget: a 0/1 program, solved exactly by HiGHS.

minimise  sum loss[g, b] x[g, b]     so that  sum size[g, b] x[g, b] <= budget,  sum_b x[g, b] = 1 for every group g
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import LinearConstraint, milp

from lowbit_k2.allocation.sensitivity import Sensitivity
from lowbit_k2.core.config import ConfigError
from lowbit_k2.errors import UserError
from lowbit_k2.quant.allocation import Allocation, covers


@dataclass(frozen=True)
class Choice:
    """An allocation, and what the table says of it.

    Attributes:
      bits: by group.
      loss: sum of the sensitivities.
      size: bytes of all tensors, the fixed ones included.
    """

    bits: Mapping[str, int]
    loss: float
    size: int
    members: Mapping[str, tuple[str, ...]]

    def allocation(self, name: str = "") -> Allocation:
        """As `use_precision`, train.py and decode.py take it; every tensor by its name."""
        return Allocation({tensor: b for group, b in self.bits.items() for tensor in self.members[group]}, name)


def evaluate(table: Sensitivity, bits: Mapping[str, int]) -> Choice:
    """What a given choice costs."""
    loss = sum(table.loss[group][b] for group, b in bits.items())
    size = table.fixed_size + sum(table.size[group][b] for group, b in bits.items())
    return Choice(dict(bits), loss, size, table.members)


def choose(
    table: Sensitivity,
    budget: int,
    tied: Sequence[Sequence[str]] = (),
    forbidden: Iterable[tuple[str, int]] = (),
) -> Choice:
    """The choice of least summed loss whose tensors take no more than `budget` bytes.

    Args:
      budget: bytes, the fixed tensors included; header and tokens of the file are not counted.
      tied: patterns of groups that share a precision, as [("*.ff1.*", "*.ff2.*")].
      forbidden: (pattern, bits) that may not be.

    Raises:
      UserError: the budget is below what the smallest choice takes (it is said), or no precision is left for a group.
    """
    forbidden = list(forbidden)
    columns = [
        (group, b)
        for group, own in table.loss.items()
        for b in own
        if not any(covers(pattern, group) and b == bits for pattern, bits in forbidden)
    ]
    left = {group for group, _ in columns}
    without = [group for group in table.loss if group not in left]
    if without:
        raise UserError(f"every precision of {without[0]} is forbidden: allow one")
    loss = np.array([table.loss[group][b] for group, b in columns])
    size = np.array([table.size[group][b] for group, b in columns], dtype=float)
    rows = [[float(group == g) for g, _ in columns] for group in table.loss]
    constraints = [
        LinearConstraint(np.array(rows), 1.0, 1.0),
        LinearConstraint(size[None], -np.inf, budget - table.fixed_size),
    ]
    equal = [row for patterns in tied for row in _equal(columns, patterns)]
    if equal:
        constraints.append(LinearConstraint(np.array(equal), 0.0, 0.0))
    # scaled, so that the solver's tolerances mean the same for all measures
    scale = max(float(loss.max()), 1e-300)
    solved = milp(
        loss / scale,
        constraints=constraints,
        integrality=np.ones(len(columns)),
        bounds=(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        smallest = milp(
            size, constraints=[constraints[0], *constraints[2:]], integrality=np.ones(len(columns)), bounds=(0, 1)
        )
        if smallest.x is None:
            raise UserError("no choice keeps to what is tied and forbidden: loosen it")
        least = table.fixed_size + round(float(size @ np.round(smallest.x)))
        raise ConfigError("budget", f"{budget:,} bytes cannot be met: the smallest choice takes {least:,}")
    return evaluate(table, {g: b for (g, b), x in zip(columns, solved.x, strict=True) if x > 0.5})


def _equal(columns: Sequence[tuple[str, int]], patterns: Sequence[str]) -> list[list[float]]:
    """Rows that say that neighbours among the groups of these patterns have the same precisions."""
    groups = list(dict.fromkeys(g for g, _ in columns if any(covers(pattern, g) for pattern in patterns)))
    bits = list(dict.fromkeys(b for _, b in columns))
    return [
        [float(c == (first, b)) - float(c == (second, b)) for c in columns]
        for first, second in zip(groups, groups[1:], strict=False)
        for b in bits
    ]


def front(table: Sensitivity, points: int = 30, **options: object) -> list[Choice]:
    """Choices that no other is better than in both loss and bytes, from the smallest to the largest.

    Args:
      points: budgets that are tried, evenly spaced in their logarithm.
    """
    smallest = table.fixed_size + sum(min(own.values()) for own in table.size.values())
    largest = table.fixed_size + sum(max(own.values()) for own in table.size.values())
    found: dict[int, Choice] = {}
    for budget in np.geomspace(smallest, largest, points):
        try:
            choice = choose(table, int(np.ceil(budget)), **options)
        except ConfigError:  # ties and what is forbidden take more
            continue
        found[choice.size] = choice
    ordered = [found[size] for size in sorted(found)]
    return [c for i, c in enumerate(ordered) if all(c.loss < other.loss for other in ordered[:i])]
