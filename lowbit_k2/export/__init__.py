"""From torch models to packed files and back."""

from lowbit_k2.export.load import LoadedPackedModel, load_packed_model
from lowbit_k2.export.own_model import attach_packed_inputs, load_packed, save_packed
from lowbit_k2.export.pack import export_float, pack_model, packed_tensors

__all__ = [
    "LoadedPackedModel",
    "attach_packed_inputs",
    "export_float",
    "load_packed",
    "load_packed_model",
    "pack_model",
    "packed_tensors",
    "save_packed",
]
