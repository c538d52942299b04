"""The recogniser of the C interface through ctypes."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np

from lowbit_k2.errors import UserError
from lowbit_k2.runtime import build
from lowbit_k2.runtime.native import MODES

SOURCES = build.NATIVE.parent / "embedded"
Pair = c_int64 * 2
SIGNATURES = {
    "open": (c_void_p, [c_char_p, c_int32, c_int32]),
    "close": (None, [c_void_p]),
    "sampling_rate": (c_int32, [c_void_p]),
    "transcribe": (c_void_p, [c_void_p, c_void_p, c_int64]),
    "features": (POINTER(c_float), [c_void_p, c_void_p, c_int64, Pair]),
    "run": (POINTER(c_float), [c_void_p, c_void_p, c_int64, Pair]),
}


def recogniser_library() -> Path:
    """The recogniser upon the kernels of Python's library, built once per change of either."""
    kernels, sources = build.library_path(), sorted(SOURCES.iterdir())
    name = build.library_name(build.compiler(), *(source.read_text() for source in sources))
    path = kernels.with_name(f"recogniser-{name}")
    if not path.is_file():
        units = dict.fromkeys((source for source in sources if source.suffix == ".cpp"), ())
        build.build(path, units, upon=[kernels])
    return path


class Embedded:
    """An lbk_recogniser; what fails raises UserError with the library's line."""

    def __init__(self, library: ctypes.CDLL, path: Path, mode: str = "exact", threads: int = 1) -> None:
        self._library, self._handle = library, None
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, f"lbk_recogniser_{name}")
            function.restype, function.argtypes = result, arguments
        library.lbk_error.restype = c_char_p
        library.lbk_free.restype, library.lbk_free.argtypes = None, [c_void_p]
        self._handle = self._given(library.lbk_recogniser_open(str(path).encode(), MODES[mode], threads))
        self.sampling_rate = library.lbk_recogniser_sampling_rate(self._handle)

    def __del__(self) -> None:
        if self._handle:
            self._library.lbk_recogniser_close(self._handle)

    def transcribe(self, samples: np.ndarray) -> str:
        text = self._given(self._library.lbk_recogniser_transcribe(self._handle, samples.ctypes.data, len(samples)))
        try:
            return ctypes.string_at(text).decode()
        finally:
            self._library.lbk_free(text)

    def features(self, samples: np.ndarray) -> np.ndarray:
        return self._array("features", samples)

    def run(self, features: np.ndarray) -> np.ndarray:
        return self._array("run", features)

    def _array(self, function: str, x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.float32 and x.flags.c_contiguous
        shape = Pair()
        call = getattr(self._library, f"lbk_recogniser_{function}")
        numbers = self._given(call(self._handle, x.ctypes.data, len(x), shape))
        array = np.ctypeslib.as_array(numbers, shape=tuple(shape)).copy()
        self._library.lbk_free(numbers)
        return array

    def _given(self, result):
        if not result:
            raise UserError(self._library.lbk_error().decode())
        return result
