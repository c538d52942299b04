"""The two lanes: what is pinned is what is installed, and what each lane promises works."""

from __future__ import annotations

import ast
import importlib
import os
import re
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lowbit_k2 import k2_compat
from lowbit_k2.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
IS_FULL_LANE = sys.version_info[:2] == (3, 10)
# Packages that the code uses where they are and does without where they are not.
OPTIONAL = {"kaldifeat", "pyroomacoustics", "sklearn"}
OPTIONAL |= {"moonshine_voice", "onnxruntime", "sherpa_onnx", "whisper"}  # rivals in benchmarks


def requirements(python_version: str, *optional: str) -> dict[str, Requirement]:
    """What the requirements files ask for under a Python version, by package name."""
    files = ("requirements.txt", "requirements-k2.txt", *optional)
    lines = [line for file in files for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    parsed = [Requirement(line.split(" --hash")[0]) for line in lines if line.strip() and not line.startswith("#")]
    held = [r for r in parsed if r.marker is None or r.marker.evaluate({"python_version": python_version})]
    assert len({r.name for r in held}) == len(held), "a package is required twice"
    return {canonicalize_name(r.name): r for r in held}


@pytest.mark.parametrize("python_version", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_is_pinned(python_version: str) -> None:
    optional = [f"requirements-{name}.txt" for name in ("onnx", "hubert", "rooms")]
    for requirement in requirements(python_version, *optional).values():
        assert [s.operator for s in requirement.specifier] == ["=="], str(requirement)


def test_k2_is_told_by_its_hash_and_nothing_else_is() -> None:
    """pip refuses a command of which some requirements have hashes."""
    lines = (ROOT / "requirements-k2.txt").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if not line.startswith("#")]
    assert re.fullmatch(r'k2==1\.23\.4 ; python_version == "3\.10" --hash=sha256:[0-9a-f]{64}', line)
    assert "--hash" not in (ROOT / "requirements.txt").read_text(encoding="utf-8")


def test_what_is_pinned_is_installed() -> None:
    wrong = {}
    for name, requirement in requirements("{}.{}".format(*sys.version_info)).items():
        installed = Version(metadata.version(name)).public  # without +cpu and the like
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong[name] = f"{installed}, pinned {requirement.specifier}: run make venv"
    assert wrong == {}


def test_every_import_is_pinned_or_optional() -> None:
    pinned = set(requirements("3.10"))
    distributions = {"google": ["protobuf"], **metadata.packages_distributions()}  # a namespace, told by some versions
    folders = ("lowbit_k2/**", "tests/**", "egs/*", "egs/*/local/**", "benchmarks")
    files = [path for folder in folders for path in ROOT.glob(f"{folder}/*.py")]
    ours = {"lowbit_k2", "tests"} | {path.stem for path in files} | {path.parent.name for path in files}
    unknown = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for root in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - ours - OPTIONAL:
                if not pinned & {canonicalize_name(d) for d in distributions.get(root, [root])}:
                    unknown.add(f"{path.relative_to(ROOT)}: {root}")
    assert not unknown


@pytest.mark.skipif(not IS_FULL_LANE, reason="not the full lane (Python 3.10)")
def test_the_full_lane_has_k2() -> None:
    """Never a skip: without this, a broken k2 would silently take a third of the tests away."""
    k2 = importlib.import_module("k2")
    assert k2_compat.require_k2() is k2
    assert k2_compat.has_k2()


@pytest.mark.skipif(not os.environ.get("LOWBIT_K2_NEEDS_KALDIFEAT"), reason="kaldifeat is not asked for")
def test_kaldifeat_is_there_where_it_is_asked_for() -> None:
    assert importlib.import_module("kaldifeat").Fbank


@pytest.mark.k2
def test_k2_intersects_and_differentiates() -> None:
    """Two frames, a path `1 2`: the total score is the sum of its log-probabilities, in value and gradient."""
    k2 = k2_compat.require_k2()
    log_probs = torch.tensor([[[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]]).log().requires_grad_()  # (N=1, T=2, C=3)
    graph = k2.linear_fsa([[1, 2]])
    dense = k2.DenseFsaVec(log_probs, torch.tensor([[0, 0, 2]], dtype=torch.int32))
    lattice = k2.intersect_dense(graph, dense, output_beam=10.0)
    total = lattice.get_tot_scores(log_semiring=True, use_double_scores=False)
    torch.testing.assert_close(total.detach(), torch.tensor([0.5 * 0.7]).log())
    total.sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]))


def test_missing_k2_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "k2", None)  # makes `import k2` raise ImportError
    monkeypatch.setattr(k2_compat, "has_k2", lambda: False)
    with pytest.raises(UserError, match="k2 is not installed: run make venv") as error:
        k2_compat.require_k2()
    assert "\n" not in str(error.value)


def test_broken_k2_is_told_from_missing_k2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "k2", None)
    monkeypatch.setattr(k2_compat, "has_k2", lambda: True)
    with pytest.raises(UserError, match="k2 cannot be imported"):
        k2_compat.require_k2()


def test_tensorboard_writes(tmp_path: Path) -> None:
    """torch 1.13's writer needs distutils, which some setuptools take away."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("train/current_loss", 1.5, 1)
    assert list(tmp_path.glob("events.*"))


def test_the_command_is_installed() -> None:
    scripts = {entry.name: entry.value for entry in metadata.distribution("lowbit_k2").entry_points}
    assert scripts["lowbit-k2"] == "lowbit_k2.cli:main"
    assert (Path(sys.executable).parent / "lowbit-k2").is_file()


# ---- .ci/find-python: which Python makes the environment


def fake_python(folder: Path, name: str, version: str | None) -> Path:
    """A stand-in for an interpreter: of a version, or a pyenv shim whose active version lacks the command."""
    folder.mkdir(parents=True, exist_ok=True)
    works = f'[ "${{!#}}" = "{version}" ]' if version else "echo 'pyenv: command not found' >&2; exit 127"
    path = folder / name
    path.write_text(f"#!/bin/bash\n{works}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def find_python(path: list[Path], pyenv_root: Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": ":".join([*map(str, path), "/usr/bin", "/bin"]), "PYENV_ROOT": str(pyenv_root)}
    # 3.99 is nobody's system Python
    command = [ROOT / ".ci" / "find-python", "3.99"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_pyenv_comes_first_and_its_newest_patch(tmp_path: Path) -> None:
    fake_python(tmp_path / "bin", "python3.99", "3.99")
    for patch in ("3.99.2", "3.99.10"):
        wanted = fake_python(tmp_path / "pyenv" / "versions" / patch / "bin", "python", "3.99")
    assert find_python([tmp_path / "bin"], tmp_path / "pyenv").stdout.strip() == str(wanted)


def test_a_shim_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    fake_python(tmp_path / "shims", "python3.99", None)
    wanted = fake_python(tmp_path / "bin", "python3.99", "3.99")
    assert find_python([tmp_path / "shims", tmp_path / "bin"], tmp_path / "none").stdout.strip() == str(wanted)


def test_uv_comes_last_and_fetches(tmp_path: Path) -> None:
    wanted, marker = fake_python(tmp_path / "managed", "python3.99", "3.99"), tmp_path / "fetched"
    uv = fake_python(tmp_path / "bin", "uv", None)
    uv.write_text(f"#!/bin/bash\n[ $2 = install ] && touch {marker}\n[ -e {marker} ] && echo {wanted}\n")
    assert find_python([tmp_path / "bin"], tmp_path / "none").stdout.strip() == str(wanted)


def test_no_python_is_one_clear_line(tmp_path: Path) -> None:
    fake_python(tmp_path / "shims", "python3.99", None)
    fake_python(tmp_path / "bin", "python3.99", "3.98")
    done = find_python([tmp_path / "shims", tmp_path / "bin"], tmp_path / "none")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: no Python 3.99") and done.stderr.count("\n") == 1
    assert "pyenv install 3.99" in done.stderr and "uv" in done.stderr
