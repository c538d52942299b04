"""The native library, under each set of instructions that this CPU has."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from lowbit_k2.runtime.native import ISAS, library


@pytest.fixture(scope="session")
def native() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        pytest.skip("no native library: no C++ compiler, or LOWBIT_K2_ISA=numpy")
    return loaded


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, native: ctypes.CDLL) -> Iterator[str]:
    """Every path of the library in turn."""
    before, wanted = native.lbk_isa(), request.param.encode()
    missing = native.lbk_isa_missing(wanted)
    if missing is not None:
        pytest.skip(f"{request.param}: {missing.decode()}")
    assert native.lbk_use_isa(wanted) == 0 and native.lbk_isa() == wanted
    yield request.param
    native.lbk_use_isa(before)
