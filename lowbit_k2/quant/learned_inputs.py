"""Grids of activations that are learned, or read from a file; inputs.py puts them in front of modules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowbit_k2.quant.elastic import Grid, elastic_quantize, elastic_value
from lowbit_k2.quant.fake_quant import GradientRule
from lowbit_k2.quant.scales import SMALLEST_SCALE


class ElasticInput(nn.Module):
    """Elastic quantization (elastic.py) of one input of a module, with alpha and beta of each precision.

    The first batch says whether the input is ever negative, and sets s = 2 mean|x| / sqrt(Qp); alpha starts at 1, the
    threshold at 0. Each process would do so on its own: before training on several, run a batch through the model.

    Attributes:
      alphas, betas: learned, keyed by str(bits), in units of s.
      statistic: mean|x| of the first batch; 0 before it.
      non_negative: 1 where that batch had no negative number.
    """

    def __init__(self, bits: Sequence[int], rule: GradientRule, frozen: bool = False) -> None:
        super().__init__()
        self.rule = rule._replace(weight="clipped")  # BiT's: what lies beyond the grid gets no gradient
        self.alphas, self.betas = (
            nn.ParameterDict({str(b): nn.Parameter(torch.full((), start), not frozen) for b in bits})
            for start in (1.0, 0.0)
        )
        self.register_buffer("statistic", torch.zeros(()))
        self.register_buffer("non_negative", torch.zeros(()))
        self._seen: tuple[tuple[int, int], tuple[bool, bool]] | None = None

    @property
    def is_set(self) -> bool:
        return self._look()[0]

    @property
    def is_non_negative(self) -> bool:
        return self._look()[1]

    def forward(self, x: Tensor, bits: int) -> Tensor:
        if not self.is_set:
            self.measure(x)
        grid = Grid(bits, self.is_non_negative)
        return elastic_quantize(x, self.alphas[str(bits)], self.betas[str(bits)], self.scale(bits), grid, self.rule)

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Start from the statistics of this batch."""
        self.statistic.fill_(x.detach().float().abs().mean().clamp(min=SMALLEST_SCALE))
        self.non_negative.fill_((x >= 0).all())

    def scale(self, bits: int) -> Tensor:
        """s, shape ()."""
        return 2.0 * self.statistic / math.sqrt(Grid(bits, self.is_non_negative).high)

    @torch.no_grad()
    def numbers(self, bits: int) -> Tensor:
        """What a file holds: step, threshold, and 1 where codes start at 0; float32 (3,)."""
        scale = self.scale(bits)
        return torch.stack([self.alphas[str(bits)] * scale, self.betas[str(bits)] * scale, self.non_negative])

    def _look(self) -> tuple[bool, bool]:
        """Whether it is set and never negative; a GPU is waited for only after somebody has written the buffers."""
        versions = self.statistic._version, self.non_negative._version
        if self._seen is None or self._seen[0] != versions:
            self._seen = versions, (bool(self.statistic > 0), bool(self.non_negative))
        return self._seen[1]


class FixedInput(nn.Module):
    """The same at one precision, from the numbers of a file."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.register_buffer("grid", numbers.clone())
        self.is_set, self.is_non_negative = True, bool(numbers[2])

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return elastic_value(x, self.grid[0], self.grid[1], Grid(bits, self.is_non_negative))

    def numbers(self, bits: int) -> Tensor:
        return self.grid.clone()


LearnedInput = ElasticInput | FixedInput
