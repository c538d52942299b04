"""The arrows between the parts of the package, read off every import with ast, and the cheap imports stay cheap."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.k2_compat import has_k2

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lowbit_k2"

# What every layer may use; `packed` of them only `core` and `tables`, which need no torch.
BASE = {
    "core",
    "errors",
    "fileio",
    "k2_compat",
    "locks",
    "onnx_packages",
    "origins",
    "plugins",
    "processes",
    "progress",
    "tables",
    "tensorfile",
    "textfile",
}
# layer -> the other layers, or single modules of them, that it may import. The top layers may import all.
ARROWS: dict[str, set[str]] = {
    "core": set(),
    "quant": set(),
    "models": {"quant"},
    "losses": {"quant", "models", "graphs.unit_graphs", "graphs.ngram"},  # for LF-MMI; no k2 in these
    "train": {"quant", "models", "losses", "data"},
    "data": {"graphs.lexicon"},  # phone tokenizers read a lexicon; no k2 in that
    "graphs": set(),
    "decode": {"graphs"},
    "allocation": {"quant", "losses", "search"},
    "search": {"quant", "models", "losses"},
    "synthesis": set(),  # speech for the demonstration recipes; nothing of the library needs it
    "scoring": set(),
    "packed": set(),
    "audit": {"packed", "quant"},
    "report": {"packed", "scoring"},
    "runtime": {"packed", "data.audio", "graphs.lexicon"},  # no torch in these
    "export": {"quant", "models", "packed"},
    "launch": set(),  # finds the interpreter, before anything can be imported
}
TOP = {"recipe", "cli", "asr"}
PACKED_MAY_IMPORT = {"numpy", "safetensors"} | set(sys.stdlib_module_names)
# Where k2 may be named; of losses only the transducer's and the lattice-free MMI's.
K2_HOMES = ("graphs/", "decode/", "k2_compat.py", "losses/rnnt", "losses/lfmmi")
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_RECIPE_LINES = 400, 80, 150

MODULES = sorted(PACKAGE.rglob("*.py"))
# Not the whole tree: a recipe's data and experiment folders can be large.
EGS = sorted([*ROOT.glob("egs/*/*.py"), *ROOT.glob("egs/*/local/**/*.py")])


def imported_names(path: Path) -> Iterator[str]:
    """Full dotted names of everything that a file imports, at any depth of nesting; relative imports resolved.

    `from a.b import c` gives `a.b.c`, so that a layer is seen however it is spelled.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parent.parts
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def forbidden_imports(path: Path) -> list[str]:
    """The imports of one module of the package that go against an arrow."""
    layer = layer_of(path)
    if layer in TOP:
        return []
    allowed = ARROWS.get(layer, set()) | {layer} | (BASE if layer != "packed" else {"core", "tables"})
    ours = [name for name in imported_names(path) if name.split(".")[0] == "lowbit_k2"]
    # `from lowbit_k2 import __version__` names no layer.
    inside = tuple(f"lowbit_k2.{part}." for part in allowed | {"__version__"})
    return [name for name in ours if not f"{name}.".startswith(inside)]


def test_the_arrows_form_no_cycle() -> None:
    TopologicalSorter({layer: {to.split(".")[0] for to in arrows} for layer, arrows in ARROWS.items()}).prepare()


def test_every_layer_has_its_arrows() -> None:
    layers = {layer_of(path) for path in MODULES} - {"__init__"}
    assert layers <= set(ARROWS) | BASE | TOP, "a new part of the package: say in ARROWS what it may import"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_arrows(path: Path) -> None:
    assert forbidden_imports(path) == []


def test_a_wrong_arrow_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "lowbit_k2")
    path = tmp_path / "lowbit_k2" / "quant" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    from lowbit_k2 import train\nfrom ..models import conformer\nfrom . import scales\n")
    assert forbidden_imports(path) == ["lowbit_k2.models.conformer", "lowbit_k2.train"]


def test_k2_is_imported_only_where_it_may_be() -> None:
    """The top layer may call require_k2, to fail before long work rather than after it."""
    homeless = []
    for path in MODULES:
        if str(path.relative_to(PACKAGE)).startswith(K2_HOMES):
            continue
        names = set(imported_names(path))
        uses_gate = "lowbit_k2.k2_compat.require_k2" in names and layer_of(path) not in TOP
        if uses_gate or any(name.split(".")[0] == "k2" for name in names):
            homeless.append(name_of(path))
    assert homeless == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=name_of)
def test_core_needs_python_only(path: Path) -> None:
    names = {name.split(".")[0] for name in imported_names(path)}
    assert names <= {"lowbit_k2"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted((PACKAGE / "packed").rglob("*.py")), ids=name_of)
def test_packed_needs_numpy_and_safetensors_only(path: Path) -> None:
    own = [
        name
        for name in imported_names(path)
        if not name.startswith(("lowbit_k2.packed.", "lowbit_k2.core.", "lowbit_k2.tables"))
    ]
    assert {name.split(".")[0] for name in own} <= PACKED_MAY_IMPORT


@pytest.mark.parametrize("path", sorted((PACKAGE / "runtime").rglob("*.py")), ids=name_of)
def test_the_runtime_needs_little(path: Path) -> None:
    """numpy, and what computes features; soundfile reads audio in data/audio.py."""
    may = PACKED_MAY_IMPORT | {"lowbit_k2", "kaldi_native_fbank"}
    assert {name.split(".")[0] for name in imported_names(path)} <= may


def test_recipes_never_import_recipes() -> None:
    recipe_of = {path: path.relative_to(ROOT / "egs").parts[0] for path in EGS}
    for path, recipe in recipe_of.items():
        own = {other.stem for other in EGS if recipe_of[other] == recipe}
        foreign = {other.stem for other in EGS if recipe_of[other] != recipe} - own | {"egs"}
        assert not {name.split(".")[0] for name in imported_names(path)} & foreign, name_of(path)


def function_bodies(path: Path) -> Iterator[tuple[str, str]]:
    """Name and body of every function of a file, docstrings and comments aside."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, "\n".join(ast.unparse(statement) for statement in body)


def twins(paths: Sequence[Path]) -> list[str]:
    """Functions whose body stands in several of the files: what is shared belongs into the package."""
    homes: dict[str, list[str]] = {}
    for path in paths:
        for name, body in function_bodies(path):
            homes.setdefault(hashlib.sha256(body.encode()).hexdigest(), []).append(f"{path}:{name}")
    return [" = ".join(names) for names in homes.values() if len(names) > 1]


def test_recipes_hold_no_twins() -> None:
    assert twins(EGS) == []


def test_a_twin_is_seen(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('def f(x: int) -> int:\n    """One."""\n    return x + 1  # why\n')
    (tmp_path / "two.py").write_text("class C:\n    def g(x):\n        return (x + 1)\n")
    assert len(twins([tmp_path / "one.py", tmp_path / "two.py"])) == 1
    (tmp_path / "two.py").write_text("def g(x):\n    return x + 2\n")
    assert twins([tmp_path / "one.py", tmp_path / "two.py"]) == []


def test_recipes_hold_no_symbolic_links() -> None:
    scripts = [*ROOT.glob("egs/*/*.*"), *ROOT.glob("egs/*/local/**/*.*")]
    assert [name_of(path) for path in scripts if path.suffix in {".py", ".sh"} and path.is_symlink()] == []


def test_the_package_never_imports_recipes() -> None:
    assert not [name_of(path) for path in MODULES if any(n.split(".")[0] == "egs" for n in imported_names(path))]


def loaded_after(statement: str) -> set[str]:
    """The top-level modules in memory after a fresh Python has run a statement."""
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_quantization_loads_neither_k2_nor_lhotse() -> None:
    loaded = loaded_after("import lowbit_k2, lowbit_k2.quant, lowbit_k2.packed")
    assert {"lowbit_k2", "torch"} <= loaded
    assert not loaded & {"k2", "lhotse", "torchaudio", "kaldifeat"}


def test_training_and_tokens_load_no_k2() -> None:
    assert "k2" not in loaded_after("import lowbit_k2.train, lowbit_k2.data.tokenizer, lowbit_k2.export")


def test_packed_does_not_load_torch() -> None:
    loaded = loaded_after("import lowbit_k2.packed, lowbit_k2.runtime, lowbit_k2.core.encodings, lowbit_k2.core.config")
    assert not loaded & {"torch", "k2", "lhotse", "torchaudio"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_imports(path: Path) -> None:
    """Also without k2, where a module that cannot work says so in its one line."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    try:
        importlib.import_module(name)
    except UserError as error:
        if has_k2() or "k2 is not installed" not in str(error):
            raise


@pytest.mark.parametrize("path", MODULES + EGS, ids=name_of)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    is_recipe_train = path.name == "train.py" and "egs" in path.relative_to(ROOT).parts
    assert len(text.splitlines()) <= (MAX_RECIPE_LINES if is_recipe_train else MAX_MODULE_LINES)
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = [f.name for f in functions if f.end_lineno - f.lineno + 1 > MAX_FUNCTION_LINES]
    assert long == []


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.glob("benchmarks/*.py")), *EGS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_scripts_import_is_there(path: Path) -> None:
    """No other test runs the benchmarks, which take minutes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowbit_k2"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                submodule = (
                    importlib.util.find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
                )
                assert hasattr(module, alias.name) or submodule, f"{node.module} has no {alias.name}"
