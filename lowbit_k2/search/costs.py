"""What each candidate of each layer costs: parameters, or bytes of a packed file.

A cost is a whole number of either; the penalty takes it in *millions*: of parameters, or of as many bytes as a million
weights of the precision in question take (0.5 MB at 4 bits). So the same eta weighs about as much in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit_k2.core.models import ModelConfig
from lowbit_k2.models import make_model
from lowbit_k2.quant import QuantConfig, quantize_model
from lowbit_k2.quant.report import ReportRow
from lowbit_k2.search.config import BYTES, PARAMETERS, SearchConfig
from lowbit_k2.search.space import SearchSpace

MILLION = 1_000_000


@dataclass(frozen=True)
class CostTable:
    """Costs add up over layers.

    Attributes:
      measure: "parameters" or "bytes".
      layers: L rows of K numbers: of the tensors of a layer whose shape hangs on its width.
      fixed: of all other tensors that decoding needs.
      bits: of the weights, for bytes.
    """

    measure: str
    layers: tuple[tuple[int, ...], ...]
    fixed: int
    bits: int = 0

    @property
    def unit(self) -> float:
        """Parameters or bytes that count as a million."""
        return MILLION if self.measure == PARAMETERS else MILLION * self.bits / 8

    def total(self, choice: Sequence[int]) -> int:
        """Parameters, or bytes, of the model of a choice."""
        return self.fixed + sum(row[place] for row, place in zip(self.layers, choice, strict=True))

    def millions(self) -> Tensor:
        """(L, K) float32, what the penalty is made of."""
        return torch.tensor(self.layers, dtype=torch.float64).div(self.unit).float()

    def expected(self, weights: Tensor) -> Tensor:
        """Scalar: millions of the layers' tensors, for weights lambda (L, K) of the candidates."""
        return (weights * self.millions().to(weights)).sum()


def cost_table(space: SearchSpace, model: ModelConfig, quant: QuantConfig, config: SearchConfig) -> CostTable:
    """Costs of all candidates, by the report that `quantize_model` gives of a model of the smallest ones.

    Args:
      model: any of the space; what only training needs is not counted.
      quant: for bytes: roles, and the precisions of what is not switched.
    """
    smallest = space.apply(model, [0] * space.num_layers)
    report = quantize_model(make_model(smallest, for_training=False), quant)
    rows = {row.name: row for row in report.rows}
    size = _bytes_at(config.bits) if config.cost == BYTES else _parameters
    shapes = [
        dict(space.apply(model, [place] * space.num_layers).shapes(for_training=False))
        for place in range(len(space.candidates))
    ]
    owned = [_names_of(space, model, layer) for layer in range(space.num_layers)]
    layers = tuple(
        tuple(sum(size(replace(rows[name], shape=known[name])) for name in names) for known in shapes)
        for names in owned
    )
    moving = set().union(*owned)
    fixed = sum(size(row) for name, row in rows.items() if name not in moving)
    return CostTable(config.cost, layers, fixed, config.bits if config.cost == BYTES else 0)


def _parameters(row: ReportRow) -> int:
    return row.num_weights


def _bytes_at(bits: int) -> Callable[[ReportRow], int]:
    return lambda row: row.bytes_at(bits)


def _names_of(space: SearchSpace, model: ModelConfig, layer: int) -> list[str]:
    """The tensors whose shape changes with the width of one layer."""
    choice = [0] * space.num_layers
    before = space.apply(model, choice).shapes(for_training=False)
    choice[layer] = len(space.candidates) - 1
    after = space.apply(model, choice).shapes(for_training=False)
    return [name for (name, shape), (_, changed) in zip(before, after, strict=True) if shape != changed]
