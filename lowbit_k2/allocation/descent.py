"""Downhill from the table's choice, by the loss that the whole model has.

A table adds up what single tensors cost while all others are float. Where all are low, that sum says little: on AN4's
TDNN-F at the bytes of 2 bits it is worse than 2 bits for all. So the best of the table's choice and the uniform ones is
where the descent begins. A trial raises the precision of one group, pays for it elsewhere with few changes, drawn by
chance, and stands when the loss on the batches falls: the result is no worse there than any uniform precision. On
speech that was held out it may be: with hardly any loss to gain the descent fits its batches, so `allocate --held-out`
asks again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from lowbit_k2.allocation.choose import Choice, choose, evaluate
from lowbit_k2.allocation.sensitivity import LAST_UPDATE, Progress, Sensitivity
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.losses.distillation import as_targets, divergence
from lowbit_k2.losses.output import Criterion, TrainingBatch
from lowbit_k2.quant.allocation import Allocation, covers
from lowbit_k2.quant.switching import use_precision


@torch.no_grad()
def loss_at(model: nn.Module, criterion: Criterion, batches: Sequence[TrainingBatch], allocation: Allocation) -> float:
    """The criterion per frame, of the model in its present mode."""
    total = frames = 0.0
    with use_precision(model, allocation):
        for batch in batches:
            out = criterion(model, batch, LAST_UPDATE)
            total, frames = total + out.loss.item(), frames + out.num_frames
    return total / frames


@torch.no_grad()
def divergence_from_float(
    model: nn.Module, criterion: Criterion, batches: Sequence[TrainingBatch]
) -> Callable[[Allocation], float]:
    """KL(float || quantized) of the output per frame, of the model in its present mode, as a function of allocations.

    Unlike the loss it has no labels to fit, and is least where the model is the float one.
    """
    references = []
    with use_precision(model, FLOAT_BITS):
        for batch in batches:
            out = criterion(model, batch, LAST_UPDATE)
            references.append((batch, as_targets(out.terms), out.shared, out.num_frames))

    @torch.no_grad()
    def divergence_of(allocation: Allocation) -> float:
        with use_precision(model, allocation):
            return sum(
                float(divergence(targets, criterion(model, batch, LAST_UPDATE, shared).terms, {}))
                for batch, targets, shared, _ in references
            ) / sum(frames for *_, frames in references)

    return divergence_of


def descend(
    table: Sensitivity,
    budget: int,
    loss_of: Callable[[Allocation], float],
    trials: int,
    tied: Sequence[Sequence[str]] = (),
    forbidden: Iterable[tuple[str, int]] = (),
    seed: int = 0,
    step: Progress = lambda: None,
) -> Choice:
    """The best choice found. Its `loss` is the table's, as of any other; what it was chosen by is `loss_of`.

    Args:
      budget, tied, forbidden: as `choose` has them.
      loss_of: of the model at an allocation.
      trials: allocations that are tried besides those that it begins with.
      step: called after each.

    Raises:
      UserError: as `choose`.
    """
    forbidden = list(forbidden)
    chosen = choose(table, budget, tied, forbidden)
    starts = [chosen, *(other for other in uniform_choices(table, budget, forbidden) if other.bits != chosen.bits)]
    losses = [loss_of(start.allocation()) for start in starts]
    loss, best = min(zip(losses, starts, strict=True), key=lambda pair: pair[0])
    draw, tried = random.Random(seed), {_key(start) for start in starts}
    for _ in range(trials):
        step()
        other = _raised(table, best, budget, tied, forbidden, draw)
        if other is None or _key(other) in tried:
            continue
        tried.add(_key(other))
        found = loss_of(other.allocation())
        if found < loss:
            loss, best = found, other
    return best


def _key(choice: Choice) -> tuple[int, ...]:
    return tuple(choice.bits.values())


def _is_forbidden(group: str, bits: int, forbidden: Sequence[tuple[str, int]]) -> bool:
    return any(b == bits and covers(pattern, group) for pattern, b in forbidden)


def uniform_choices(table: Sensitivity, budget: int, forbidden: Sequence[tuple[str, int]] = ()) -> list[Choice]:
    """One precision for all, where every group may have it and it fits the budget."""
    allowed = [
        b
        for b in table.bits
        if all(b in own and not _is_forbidden(group, b, forbidden) for group, own in table.loss.items())
    ]
    choices = [evaluate(table, dict.fromkeys(table.loss, b)) for b in allowed]
    return [choice for choice in choices if choice.size <= budget]


def _raised(
    table: Sensitivity,
    current: Choice,
    budget: int,
    tied: Sequence[Sequence[str]],
    forbidden: Sequence[tuple[str, int]],
    draw: random.Random,
) -> Choice | None:
    """One group at more bits, the others changed as little as the budget allows; None where that cannot be."""
    higher = [
        (group, b)
        for group, own in table.loss.items()
        for b in own
        if b > current.bits[group] and not _is_forbidden(group, b, forbidden)
    ]
    if not higher:
        return None
    group, bits = draw.choice(higher)
    held = [(group, b) for b in table.loss[group] if b != bits]
    changes = {}  # groups that pay are drawn by chance, and each pays no more than it must
    for name, own in table.loss.items():
        price, now = draw.uniform(1, 2), current.bits[name]
        changes[name] = {b: 0.0 if b == now else price + 0.01 * abs(b - now) for b in own}
    try:
        return evaluate(table, choose(replace(table, loss=changes), budget, tied, [*forbidden, *held]).bits)
    except ConfigError:  # the budget does not reach so far
        return None
