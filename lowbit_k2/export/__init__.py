"""From torch models to packed files and back."""

from lowbit_k2.export.load import LoadedPackedModel, load_packed_model
from lowbit_k2.export.pack import ENCODING_OF_BITS, export_float, pack_model, packed_tensors

__all__ = [
    "ENCODING_OF_BITS",
    "LoadedPackedModel",
    "export_float",
    "load_packed_model",
    "pack_model",
    "packed_tensors",
]
