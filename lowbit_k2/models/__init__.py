"""Acoustic models in plain float PyTorch; `lowbit_k2.quant` turns their weights into few bits from outside."""

from lowbit_k2.models.conformer import ConformerConfig, ConformerCtc

__all__ = ["ConformerConfig", "ConformerCtc"]
