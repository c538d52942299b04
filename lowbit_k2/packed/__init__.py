"""Packed models: integer codes in as few bits as they need, in one checked file. numpy only, never torch.

Reading order: core.encodings (names and sizes), bitpack (codes to bytes), coding (these to fewer), tensors and contents
(what a file holds), container (sections and checksum), format (read and write), sizes (what takes how many bytes),
entropy (what codes hold), importing (low-bit weights of others). `docs/packed-format.md` describes the file for readers
in other languages.
"""

from lowbit_k2.packed.bitpack import pack, unpack
from lowbit_k2.packed.contents import FileSizes, PackedModel
from lowbit_k2.packed.entropy import EntropyRow, entropy_rows, format_entropy
from lowbit_k2.packed.errors import PackedFileError
from lowbit_k2.packed.format import read_packed, write_packed
from lowbit_k2.packed.importing import Imported, import_table, import_tensors
from lowbit_k2.packed.sizes import SizeRow, SizeTable, size_table
from lowbit_k2.packed.tensors import PackedTensor

__all__ = [
    "EntropyRow",
    "FileSizes",
    "Imported",
    "PackedFileError",
    "PackedModel",
    "PackedTensor",
    "SizeRow",
    "SizeTable",
    "entropy_rows",
    "format_entropy",
    "import_table",
    "import_tensors",
    "pack",
    "read_packed",
    "size_table",
    "unpack",
    "write_packed",
]
