"""Packed models: integer codes in as few bits as they need, in one checked file. numpy only, never torch.

Reading order: bitpack (codes to bytes), model (what a file holds), container (sections and checksum), format (read and
write), sizes (what takes how many bytes). `docs/packed-format.md` describes the file for readers in other languages.
"""

from lowbit_k2.packed.bitpack import ENCODINGS, pack, unpack
from lowbit_k2.packed.errors import PackedFileError
from lowbit_k2.packed.format import read_packed, write_packed
from lowbit_k2.packed.model import FileSizes, PackedModel, PackedTensor
from lowbit_k2.packed.sizes import SizeRow, SizeTable, size_table

__all__ = [
    "ENCODINGS",
    "FileSizes",
    "PackedFileError",
    "PackedModel",
    "PackedTensor",
    "SizeRow",
    "SizeTable",
    "pack",
    "read_packed",
    "size_table",
    "unpack",
    "write_packed",
]
