"""Packed models: integer codes in as few bits as they need, in one checked file. numpy only, never torch.

Reading order: core.encodings (names and sizes), bitpack (codes to bytes), coding (these to fewer), tensors and contents
(what a file holds), container (sections and checksum), format (read and write), sizes (what takes how many bytes),
entropy (what codes hold), steps (what fewer bits would save), importing (low-bit weights of others).
`docs/packed-format.md` describes the file for readers in other languages.
"""

from lowbit_k2.packed.bitpack import pack, unpack
from lowbit_k2.packed.contents import FileSizes, PackedModel
from lowbit_k2.packed.entropy import EntropyRow, code_entropy, entropy_rows, format_entropy, sum_entropy
from lowbit_k2.packed.errors import PackedFileError
from lowbit_k2.packed.format import read_packed, write_packed
from lowbit_k2.packed.importing import Imported, import_table, import_tensors
from lowbit_k2.packed.sizes import Sized, SizeRow, SizeTable, size_rows, size_table
from lowbit_k2.packed.steps import Step, format_steps, next_steps
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
    "Sized",
    "Step",
    "code_entropy",
    "entropy_rows",
    "format_entropy",
    "import_table",
    "import_tensors",
    "format_steps",
    "next_steps",
    "pack",
    "read_packed",
    "size_rows",
    "size_table",
    "sum_entropy",
    "unpack",
    "write_packed",
]
