"""Batches to the processes that train together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def deal(batches: Iterable[Sequence[T]], rank: int, world_size: int, drop_last: bool = False) -> Iterator[Sequence[T]]:
    """A rank's share, as many batches as every rank gets.

    Where fewer than a round are left, what is in them is dealt out anew as lists, some twice if there is less than
    ranks; with `drop_last` it is left out.
    """
    batches = iter(batches)
    while group := list(islice(batches, world_size)):
        if len(group) == world_size:
            yield group[rank]
        elif not drop_last:
            left = [item for batch in group for item in batch]
            yield left[rank % len(left) :: world_size]
