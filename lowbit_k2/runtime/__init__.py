"""The packed runtime: weights of 1 to 8 bits times activations on a CPU, from packed files, without torch.

Reading order: reference (what is computed, in numpy), matrix (the same by the library), layers (the rest of an
encoder), weights, conformer, transducer and encoder (a model of these), features, units, search, transcript and
recogniser (from audio to words), native and build (the library and how it comes to be), native/lowbit_k2.h (its C
interface), native/panels.h (how it computes). embedded/ is a recogniser upon that library, for programs in C.
"""

from lowbit_k2.runtime.encoder import PackedCtc, PackedTransducer
from lowbit_k2.runtime.errors import UnsupportedError
from lowbit_k2.runtime.matrix import PackedMatrix, matmul
from lowbit_k2.runtime.native import isa_in_use
from lowbit_k2.runtime.recogniser import Recogniser
from lowbit_k2.runtime.search import SearchConfig
from lowbit_k2.runtime.transcript import Token, Transcript, Word

__all__ = [
    "PackedCtc",
    "PackedMatrix",
    "PackedTransducer",
    "Recogniser",
    "SearchConfig",
    "Token",
    "Transcript",
    "UnsupportedError",
    "Word",
    "isa_in_use",
    "matmul",
]
