"""A search in words: what its candidates cost, and what it has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lowbit_k2.search.architecture import Architecture
from lowbit_k2.search.config import SearchConfig
from lowbit_k2.search.costs import CostTable
from lowbit_k2.search.space import SearchSpace
from lowbit_k2.tables import text_table


def describe_space(space: SearchSpace, costs: CostTable) -> str:
    """What each candidate costs in the first layer, and the model with it in all of them."""
    rows = [
        (str(width), f"{costs.layers[0][i]:,}", f"{costs.total([i] * space.num_layers):,}")
        for i, width in enumerate(space.candidates)
    ]
    title = f"{space.field} of {space.num_layers} layers of a {space.kind}, {costs.measure}"
    at = f" at {costs.bits} bits" if costs.bits else ""
    return f"{title}{at}:\n{text_table((space.field, 'first layer', 'all alike'), rows)}"


def found_architecture(
    space: SearchSpace, costs: CostTable, logits: Tensor, config: SearchConfig, origin: Mapping[str, Any]
) -> Architecture:
    """The most probable candidate of each layer."""
    probabilities, choice = logits.softmax(dim=-1), logits.argmax(dim=-1).tolist()
    cost = {"measure": costs.measure, "value": costs.total(choice), "largest": costs.total(space.largest)}
    return Architecture(
        encoder=space.kind,
        fields={space.field: space.widths(choice)},
        candidates=space.candidates,
        probabilities=tuple(tuple(round(p, 4) for p in row) for row in probabilities.tolist()),
        cost=cost | ({"bits": costs.bits} if costs.bits else {}),
        eta=config.eta,
        searched_on=origin,
    )


def describe_architecture(found: Architecture) -> str:
    """A line per layer, and the costs."""
    [(field, widths)] = found.fields.items()
    rows = [
        (str(layer), str(width), *(f"{p:.2f}" for p in row))
        for layer, (width, row) in enumerate(zip(widths, found.probabilities, strict=True))
    ]
    table = text_table(("layer", field, *(f"p({width})" for width in found.candidates)), rows)
    value, largest = found.cost["value"], found.cost["largest"]
    return f"{table}\n{found.cost['measure']}: {value:,} of the supernet's {largest:,}"
