"""Run the recipes' scripts and look at what they leave behind."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lowbit_k2.errors import run_main

ROOT = Path(__file__).resolve().parents[2]
AN4 = ROOT / "egs/an4"
LIBRISPEECH = ROOT / "egs/librispeech"
TINY = "--d-model=16 --num-layers=2 --num-heads=2 --ffn-dim=32 --subsampling-channels=4 --conv-kernel=5"
Flag = str | int | float | Path


@dataclass(frozen=True)
class Run:
    """What a shell would see of a script."""

    status: int
    out: str
    err: str

    def error(self, status: int = 1) -> str:
        """The one line with which the script must have failed, after whatever it logged."""
        assert self.status == status, (self.status, self.err)
        lines = self.err.splitlines()
        assert "Traceback" not in self.err and sum("error: " in line for line in lines) == 1, self.err
        assert status == 2 or lines[-1].startswith("error: "), self.err
        return lines[-1]

    def good(self) -> Run:
        assert self.status == 0, self.err
        return self


def call(script: Path | str, *flags: Flag) -> Run:
    """Run a script (by its path) or a module with a `main` in this process, which spares seconds of imports.

    An exception that the script would show with a traceback goes on to the test.
    """
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with undisturbed(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = [str(script), *map(str, flags)]
        try:
            if isinstance(script, Path):
                make_room(script)
                runpy.run_path(str(script), run_name="__main__")
            else:
                run_main(importlib.import_module(script).main)
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
            if isinstance(exit_.code, str):
                err.write(exit_.code + "\n")
    return Run(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put back what a script changes in its process."""
    argv, path, threads, root = sys.argv, list(sys.path), torch.get_num_threads(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        sys.argv, sys.path[:], root.handlers[:], root.level = argv, path, handlers, level
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


def spawn(*command: Flag, cwd: Path | None = None, **environment: str) -> Run:
    """Run a command of its own process, with this interpreter as `PYTHON` and one thread."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )
    return Run(done.returncode, done.stdout, done.stderr)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file, and the folders."""
    found = {p: p.stat() for p in folder.rglob("*")}
    return {str(p): (s.st_size, s.st_mtime_ns) if p.is_file() else (0, 0) for p, s in found.items()}


def refused(tmp_path: Path, script: Path | str, *flags: Flag, status: int = 1) -> str:
    """The line with which the script failed; it must have left everything under `tmp_path` as it was."""
    before = files_of(tmp_path)
    line = call(script, *[str(flag).replace("TMP", str(tmp_path)) for flag in flags]).error(status)
    assert files_of(tmp_path) == before
    return line


def local_module(folder: Path, name: str) -> ModuleType:
    """A module of a recipe's local/ folder, whose modules see each other as scripts do."""
    make_room(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder.resolve())
        return importlib.import_module(name)


def make_room(script: Path) -> None:
    """Recipes have modules of one name, `prepare_manifests` or `train`: other files' go, which this process knows."""
    recipe = next((folder for folder in script.resolve().parents if folder.parent.name == "egs"), None)
    for path in [*recipe.glob("*.py"), *recipe.glob("local/*.py")] if recipe else []:
        module = sys.modules.get(path.stem)
        if module is not None and Path(getattr(module, "__file__", None) or ".").resolve() != path:
            del sys.modules[path.stem]
