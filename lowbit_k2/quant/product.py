"""MatrixProduct: the product of two activations as a module, so that quantizers can be put on what goes into it."""

from __future__ import annotations

from torch import Tensor, nn


class MatrixProduct(nn.Module):
    """a @ b; attention calls it for queries by keys, and for its weights by values.

    It has no parameters. Rules find it by its name or as `class:MatrixProduct`, and its scheme's `input_bits` are those
    of both operands, see inputs.py.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., M, K) by (..., K, N) -> (..., M, N)."""
        return a @ b
