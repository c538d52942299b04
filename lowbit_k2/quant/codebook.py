"""CodebookQuantizer: each weight is the nearest entry of a learned table, one table per tensor and precision.

    W_hat = table[codes],    codes = argmin_j |W - table[j]|
    dL/dW = dL/dW_hat                                    straight-through: the derivative of a staircase is no use
    dL/dtable[j] = sum of dL/dW_hat over codes == j      the true gradient, the codes held fixed

A table starts at the k-means of its weights (Lloyd's algorithm), and moves by gradient alone. Nothing is lost against
an even grid with as many codes but the table's bytes, and the ability to multiply by integers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowbit_k2.errors import UserError
from lowbit_k2.quant.config import TensorScheme, low_bits
from lowbit_k2.quant.quantizer import WeightQuantizer, register_quantizer

MAX_SAMPLES = 1 << 16  # weights that k-means looks at
MAX_ROUNDS = 50


class CodebookQuantizer(WeightQuantizer):
    """See above.

    Attributes:
      tables: the entries of each low precision, shape (2^bits,), keyed by str(bits); ascending at first.
    """

    granularities = ("tensor",)
    is_index = True
    zero_code = None

    def __init__(self, weight: Tensor, scheme: TensorScheme, *args: Any, **options: Any) -> None:
        super().__init__(weight, scheme, *args, **options)
        tables = {
            str(b): nn.Parameter(cluster(weight, 2**b), requires_grad=not self.frozen) for b in low_bits(self.bits)
        }
        self.tables = nn.ParameterDict(tables)

    def quantize(self, weight: Tensor, bits: int) -> Tensor:
        return _Lookup.apply(weight, self.tables[str(bits)])

    @torch.no_grad()
    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """uint8 places in the table."""
        return nearest(weight, self.tables[str(bits)])

    def step(self, weight: Tensor, bits: int) -> Tensor:
        return torch.ones((), dtype=torch.float32)

    def table(self, bits: int) -> Tensor:
        return self.tables[str(bits)].detach()

    def learned(self, bits: int) -> list[nn.Parameter]:
        return [self.tables[str(bits)]]

    def check_export(self, bits: int) -> None:
        if not torch.isfinite(self.table(bits)).all():
            raise UserError(f"{self.name}: its table at {bits} bits holds numbers that are not finite")


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, table: Tensor) -> Tensor:
        codes = nearest(weight, table)
        ctx.save_for_backward(codes)
        ctx.table_size = len(table)
        return table[codes.long()]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (codes,) = ctx.saved_tensors
        grad_table = None
        if ctx.needs_input_grad[1]:
            grad_table = grad.new_zeros(ctx.table_size)
            grad_table.index_add_(0, codes.reshape(-1).long(), grad.reshape(-1))
        return grad if ctx.needs_input_grad[0] else None, grad_table


def nearest(weight: Tensor, table: Tensor) -> Tensor:
    """Place of the entry of `table` (K,) nearest to each weight, uint8; between two entries, the smaller one."""
    entries, order = table.detach().sort()
    middles = (entries[1:] + entries[:-1]) / 2
    places = torch.bucketize(weight.detach().contiguous(), middles)
    return order[places].to(torch.uint8)


@torch.no_grad()
def cluster(weight: Tensor, size: int) -> Tensor:
    """Table of `size` ascending entries with the least squared distance to the weights that Lloyd's algorithm finds.

    It starts from quantiles and draws nothing at random; of a large tensor it looks at evenly spaced weights.
    """
    if weight.is_meta:  # only shapes are wanted
        return weight.new_zeros(size)
    stride = -(-weight.numel() // MAX_SAMPLES)
    values = weight.detach().reshape(-1)[::stride].cpu().double().sort().values  # (n,)
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])  # (n + 1,)
    at = (torch.arange(size, dtype=torch.float64) + 0.5) / size * (len(values) - 1)
    table = values[at.round().long()]
    for _ in range(MAX_ROUNDS):
        bounds = torch.searchsorted(values, (table[1:] + table[:-1]) / 2, right=True)
        bounds = torch.cat([bounds.new_zeros(1), bounds, bounds.new_full((1,), len(values))])  # (size + 1,)
        counts = bounds[1:] - bounds[:-1]
        means = (sums[bounds[1:]] - sums[bounds[:-1]]) / counts.clamp(min=1)
        moved = torch.where(counts > 0, means, table).sort().values  # an entry without weights stays
        if torch.equal(moved, table):
            break
        table = moved
    return table.to(weight.dtype).to(weight.device)


register_quantizer("codebook", CodebookQuantizer)
