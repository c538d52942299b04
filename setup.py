"""The packed runtime's library, built into wheels where a C++ compiler exists; all else is in pyproject.toml."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel._bdist_wheel import bdist_wheel

HOME = "lowbit_k2/runtime"


def load_build():
    """lowbit_k2/runtime/build.py by itself: the package needs numpy, which need not be here yet."""
    spec = importlib.util.spec_from_file_location(
        "lowbit_k2_build", Path(__file__).resolve().parent / HOME / "build.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


native = load_build()


def has_compiler() -> bool:
    try:
        return bool(native.compiler())
    except native.BuildError:
        return False


def glibc_of(library: Path) -> int:
    """Least minor version of glibc 2 that has all symbols which a library asks for; 0 without any."""
    return max(map(int, re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())), default=0)


class WithLibrary(Distribution):
    def has_ext_modules(self) -> bool:
        """Wheels with a library are no pure Python."""
        return has_compiler()


class BuildLibrary(build_py):
    def run(self) -> None:
        """An editable install has its library in the cache, a wheel within."""
        super().run()
        prebuilt = Path(self.build_lib) / HOME / "prebuilt"
        shutil.rmtree(prebuilt, ignore_errors=True)  # of an earlier build
        try:
            if getattr(self, "editable_mode", False):
                native.library_path()
            else:
                native.build_for_wheel(prebuilt)
        except native.BuildError as error:
            print(f"warning: without the packed runtime's library, numpy takes its place: {error}", file=sys.stderr)


class LibraryWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3: ctypes loads the library. Of glibc the version that it asks for."""
        folder = Path(self.get_finalized_command("build_py").build_lib) / HOME / "prebuilt"
        libraries = list(folder.glob("*.so"))
        if not libraries:
            return "py3", "none", "any"
        own = super().get_tag()[2]
        glibc = glibc_of(libraries[0])
        if own.startswith("linux_") and glibc:
            own = f"manylinux_2_{max(17, glibc)}_{own.removeprefix('linux_')}"
        return "py3", "none", own


setup(
    distclass=WithLibrary,
    cmdclass={"build_py": BuildLibrary, "bdist_wheel": LibraryWheel},
)
