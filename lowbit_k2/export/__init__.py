"""From torch models to packed files and back."""

from lowbit_k2.export.load import PackedConformer, load_packed_model
from lowbit_k2.export.pack import export_float, pack_model, packed_tensors

__all__ = [
    "PackedConformer",
    "export_float",
    "load_packed_model",
    "pack_model",
    "packed_tensors",
]
