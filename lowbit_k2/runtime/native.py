"""The shared library through ctypes, which releases Python's lock while a function of it runs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint8, c_void_p

import numpy as np

from lowbit_k2.errors import UserError
from lowbit_k2.runtime.build import BuildError, library_path, prebuilt_library, units

ABI = 3  # LBK_ABI of native/lowbit_k2.h
KERNELS = "kernels_"
ISAS = tuple(name.removeprefix(KERNELS) for name in units() if name.startswith(KERNELS))
NUMPY = "numpy"  # as LOWBIT_K2_ISA: without the library
ISA_VARIABLE = "LOWBIT_K2_ISA"
MODES = {"exact": 0, "a16": 1, "a8": 2}
ACTIVATIONS = {"relu": 0, "swish": 1}
GRANULARITY = {"tensor": 0, "channel": 1, "block64": 2}


class Tensor(ctypes.Structure):
    """lbk_tensor."""

    _fields_ = [
        ("encoding", c_char_p),
        ("rows", c_int64),
        ("cols", c_int64),
        ("data", c_void_p),
        ("granularity", c_int32),
        ("steps", c_void_p),
        ("table", c_void_p),
        ("table_size", c_int32),
        ("zero_point", c_int32),
        ("input_bits", c_int32),
    ]


_ROWS = (c_int, [c_void_p, c_int64, c_int64, c_void_p, c_int32])
_SIGNATURES = {
    "lbk_layer_norm": (c_int, [c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_float, c_void_p, c_int32]),
    "lbk_add_norm": (
        c_int,
        [c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p, c_void_p, c_float, c_void_p, c_int32],
    ),
    "lbk_swish": _ROWS,
    "lbk_glu": _ROWS,
    "lbk_softmax": _ROWS,
    "lbk_log_softmax": _ROWS,
    "lbk_depthwise": (c_int, [c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int32, c_void_p, c_int32]),
    "lbk_convolve": (
        c_int,
        [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int32],
    ),
    "lbk_patches": (c_int, [c_void_p, *[c_int64] * 5, c_int32, c_void_p]),
    "lbk_attention": (c_int, [*[c_void_p] * 6, *[c_int64] * 3, c_void_p, c_int32, c_int32]),
    "lbk_lstm": (c_int, [*[c_void_p] * 3, c_int64, c_int64, *[c_void_p] * 3, c_int32, c_int32]),
    "lbk_abi": (c_int, []),
    "lbk_error": (c_char_p, []),
    "lbk_isa": (c_char_p, []),
    "lbk_isa_missing": (c_char_p, [c_char_p]),
    "lbk_use_isa": (c_int, [c_char_p]),
    "lbk_matrix_new": (c_void_p, [POINTER(Tensor)]),
    "lbk_matrix_free": (None, [c_void_p]),
    "lbk_matrix_bytes": (c_size_t, [c_void_p]),
    "lbk_feed_forward": (
        c_int,
        [c_void_p, c_void_p, c_int32, c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int32, c_int32, c_int32],
    ),
    "lbk_matmul": (
        c_int,
        [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_int32, c_int32, c_int32],
    ),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library with its signatures; None where numpy has to do, which is said once.

    Raises:
      UserError: LOWBIT_K2_ISA names instructions that there are not.
    """
    if os.environ.get(ISA_VARIABLE) == NUMPY:
        return None
    try:
        loaded = _load()
    except (BuildError, OSError) as error:
        logging.getLogger(__name__).warning("packed weights are multiplied by numpy, which is slow: %s", error)
        return None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    assert loaded.lbk_abi() == ABI
    if loaded.lbk_use_isa(None):
        reason = loaded.lbk_error().decode(errors="replace")
        raise UserError(f"{ISA_VARIABLE}: {reason}: take one of {', '.join(available_isas(loaded))}")
    return loaded


def _load() -> ctypes.CDLL:
    """The library of a wheel, or, where there is none or this system cannot load it, one that is built here.

    Raises:
      BuildError, OSError: there is none, and none can be built or loaded.
    """
    prebuilt = prebuilt_library()
    if prebuilt is not None:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(prebuilt))
    return ctypes.CDLL(str(library_path()))


def available_isas(loaded: ctypes.CDLL) -> list[str]:
    """Names that LOWBIT_K2_ISA may have on this machine."""
    return [*(name for name in ISAS if loaded.lbk_isa_missing(name.encode()) is None), NUMPY]


def isa_in_use() -> str:
    """Name of the instructions in use, "numpy" without the library."""
    loaded = library()
    return NUMPY if loaded is None else loaded.lbk_isa().decode()


def check(loaded: ctypes.CDLL, failed: int) -> None:
    """Raise what a function of the library reported; callers have checked sizes, so it is memory.

    Raises:
      MemoryError: the library's line.
    """
    if failed:
        raise MemoryError(loaded.lbk_error().decode(errors="replace"))


def pointer(array: np.ndarray | None) -> int | None:
    """Address of an array's first number, for as long as the array lives."""
    if array is None:
        return None
    if array.flags.carray and array.size:  # three times as fast as the other way, which takes microseconds
        return ctypes.addressof(c_uint8.from_buffer(array))
    return array.ctypes.data
