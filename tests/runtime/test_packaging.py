"""Wheels: the library that they bring, and their tags. That a wheel installs is tried by hand (`make wheel`)."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
import setuptools

from lowbit_k2.runtime import build
from lowbit_k2.runtime import native as binding


def test_a_wheel_brings_its_library(native, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is taken if it is of these sources and can be loaded."""
    monkeypatch.setattr(build, "PREBUILT", tmp_path)
    assert build.prebuilt_library() is None
    built = build.library_path()
    shutil.copy(built, tmp_path / "runtime-0123456789abcdef.so")  # of other sources
    assert build.prebuilt_library() is None and binding._load()._name == str(built)
    prebuilt = tmp_path / build.library_name()
    shutil.copy(built, prebuilt)
    assert build.prebuilt_library() == prebuilt and binding._load()._name == str(prebuilt)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    assert build.prebuilt_library() is None
    monkeypatch.undo()
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "damaged")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / build.library_name()).write_bytes(b"of another system")
    assert build.prebuilt_library() is not None and binding._load()._name == str(built)


def test_tags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repo_root: Path) -> None:
    monkeypatch.setattr(setuptools, "setup", lambda **settings: None)
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(repo_root / "setup.py"))
    command = script["LibraryWheel"](script["WithLibrary"]({"name": "lowbit_k2"}))
    command.plat_name = "linux_riscv64"
    command.ensure_finalized()
    command.get_finalized_command("build_py").build_lib = str(tmp_path)
    assert command.get_tag() == ("py3", "none", "any")
    library = tmp_path / "lowbit_k2/runtime/prebuilt/runtime-0.so"
    library.parent.mkdir(parents=True)
    for symbols, glibc in ((b"GLIBC_2.2.5\0GLIBC_2.34\0GLIBCXX_3.4.99\0GLIBC_2.4", 34), (b"GLIBC_2.2.5", 17)):
        library.write_bytes(b"\x7fELF\0" + symbols + b"\0")
        assert command.get_tag() == ("py3", "none", f"manylinux_2_{glibc}_riscv64")
