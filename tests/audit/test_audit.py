"""Every byte of a file once: against what other readers of the formats say."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lowbit_k2.audit import FileAudit, audit_checkpoint, audit_onnx, audit_safetensors
from lowbit_k2.audit.stored import guess_role
from lowbit_k2.errors import UserError
from lowbit_k2.packed import next_steps
from lowbit_k2.packed.entropy import code_entropy
from lowbit_k2.quant import use_precision
from lowbit_k2.train.checkpoint import Checkpoint, save_checkpoint
from tests.egs.scripts import call
from tests.export.toy import Toy, toy_model

MAIN = "lowbit_k2.cli"


def bytes_of(found: FileAudit) -> int:
    return sum(tensor.nbytes for tensor in found.tensors) + sum(found.parts.values())


@pytest.fixture(scope="module")
def toy() -> Toy:
    return toy_model()


def test_roles_of_foreign_names() -> None:
    assert guess_role("module.encoder.layers.3.ff1.w1.weight", (4, 4)) == "encoder_linear"
    assert guess_role("ctc_head.weight", (4, 4)) == "output" and guess_role("a.b.bias", (4,)) == "bias"
    assert guess_role("h.0.mlp.weight", (4, 4)) == "matrix" and guess_role("h.0.scale", (4,)) == "vector"


# --- torch archives -----------------------------------------------------------------------------------------------


def test_a_checkpoint(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "epoch-1.pt"
    state = toy.model.state_dict()
    optimizer = {"0.exp_avg": torch.zeros(7, 3)}
    save_checkpoint(path, Checkpoint(state, {"config": "x"}, optimizer, {n: v.double() for n, v in state.items()}))
    found = audit_checkpoint(path)
    assert bytes_of(found) == found.total == path.stat().st_size
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    assert {t.name: (t.shape, t.nbytes) for t in found.tensors} == {
        name: (tuple(value.shape), 4 * value.numel()) for name, value in floats.items()
    }
    assert found.parts["optimizer"] == 84 and found.parts["other tensors"] == 8 * (len(state) - len(floats))
    wide = sum(v.numel() * (8 if v.is_floating_point() else v.element_size()) for v in state.values())
    assert found.parts["model_avg"] == wide and found.parts["unused"] == 0
    roles = {t.role for t in found.tensors}
    assert {"encoder_linear", "attention", "convolution", "output", "quantizer", "norm"} <= roles
    with zipfile.ZipFile(path) as archive:
        [pickle] = [record for record in archive.infolist() if record.filename.endswith("/data.pkl")]
    assert found.parts["pickle"] == pickle.file_size


def test_a_state_dict_with_shared_storages(tmp_path: Path) -> None:
    """Tied tensors and two views of one storage: their bytes count once, a tied tensor's weights too."""
    block = torch.arange(20.0)
    state = {"a.weight": block[:12].view(3, 4), "b.weight": block[12:].view(2, 4)}
    state |= {
        "tied": state["a.weight"],
        "codes": torch.tensor([[1, -1], [1, 1]], dtype=torch.int8),
        "half": torch.ones(5).half(),
    }
    torch.save(state, tmp_path / "m.pt")
    found = audit_checkpoint(tmp_path / "m.pt")
    assert bytes_of(found) == (tmp_path / "m.pt").stat().st_size
    sizes = {t.name: t.nbytes for t in found.tensors}
    assert sizes == {"a.weight": 80, "b.weight": 0, "codes": 4, "half": 10}
    assert found.table.num_weights == 12 + 8 + 4 + 5
    [row, total] = found.entropy()
    assert row.entropy == total.entropy == pytest.approx(4 * code_entropy(np.array([0, 1, 1, 1], np.uint8)))


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.nn.Linear(2, 2)}, tmp_path / "m.pt")
    line = call(MAIN, "inspect", tmp_path / "m.pt").error()
    assert f"{tmp_path / 'm.pt'} asks for" in line and "which is no tensor: it is not read" in line


# --- safetensors --------------------------------------------------------------------------------------------------


def test_a_safetensors_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "encoder.layers.0.ff.weight": rng.normal(size=(6, 5)).astype(np.float32),
        "half": rng.normal(size=(3, 3)).astype(np.float16),
        "q": rng.integers(-2, 2, (8, 8)).astype(np.int8),
        "steps": np.arange(4),
    }
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, {"note": "x"})
    path.write_bytes(path.read_bytes() + b"tail")
    found = audit_safetensors(path)
    assert bytes_of(found) == path.stat().st_size
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert found.parts == {"header": header, "other tensors": 32, "unused": 4}
    assert {t.name: t.nbytes for t in found.tensors} == {n: a.nbytes for n, a in tensors.items() if n != "steps"}
    value = json.loads(call(MAIN, "inspect", path, "--json").good().out)
    assert value["sizes"]["file"]["total"] == path.stat().st_size and value["kind"] == "safetensors file"
    assert value["sizes"]["bits"] == pytest.approx(8 * path.stat().st_size / (30 + 9 + 64))
    assert value["sizes"]["float16_ratio"] == pytest.approx(2 * 103 / path.stat().st_size)
    assert value["entropy"][-1]["entropy"] == pytest.approx(64 * code_entropy(tensors["q"]))


@pytest.mark.parametrize("spoil", ["short", "header", "overlap"])
def test_a_damaged_safetensors_file(spoil: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}, path)
    data = path.read_bytes()
    if spoil == "short":
        data = data[:-5]
    elif spoil == "header":
        data = data.replace(b'"dtype"', b'"dtypo"')
    else:
        data = data.replace(b"[16,32]", b"[ 8,24]")
    path.write_bytes(data)
    assert str(path) in call(MAIN, "inspect", path).error()


# --- ONNX ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_files(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from lowbit_k2.export.onnx import export_onnx

    folder = tmp_path_factory.mktemp("onnx")
    with use_precision(toy.model, 1):
        return {kind: export_onnx(toy, folder, kind)[0] for kind in ("float", "int8", "4bit")}


def varint_bytes(value: int) -> int:
    """Of a number in a repeated field of int32; negative ones take ten."""
    return 10 if value < 0 else max(1, -(-value.bit_length() // 7))


def test_onnx_files(onnx_files: dict[str, Path]) -> None:
    import onnx

    for kind, path in onnx_files.items():
        found, model = audit_onnx(path), onnx.load(str(path))
        assert bytes_of(found) == path.stat().st_size
        tensors = [*model.graph.initializer]
        tensors += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
        payload = sum(len(t.raw_data) + 4 * len(t.float_data) + sum(map(varint_bytes, t.int32_data)) for t in tensors)
        assert sum(t.nbytes for t in found.tensors) + found.parts["other tensors"] == payload, kind
        assert found.parts["nodes"] > 1000 and found.parts["rest"] < 0.3 * found.total
    float_weights = audit_onnx(onnx_files["float"]).table.num_weights
    assert audit_onnx(onnx_files["int8"]).table.num_weights == float_weights
    assert audit_onnx(onnx_files["4bit"]).table.num_weights == float_weights


def test_codes_of_an_onnx_file(toy: Toy, onnx_files: dict[str, Path]) -> None:
    """A 1-bit matrix in 4-bit containers: what its codes hold is known."""
    from lowbit_k2.export.pack import packed_model

    with use_precision(toy.model, 1):
        packed = {f"{t.name}.codes": t for t in packed_model(toy).tensors}
    found = [t for t in audit_onnx(onnx_files["4bit"]).tensors if t.encoding == "int4"]
    assert len(found) > 20
    for tensor in found:
        own = packed[tensor.name]
        assert tensor.shape == own.shape and np.array_equal(tensor.codes.astype(np.int8) - 8, own.codes)
        assert tensor.role in (own.role, "encoder_linear")


def test_numbers_outside_of_raw_data(tmp_path: Path) -> None:
    """Of every field, against the encoder of protocol buffers, whose bytes are a tag, a length and the numbers."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    kinds = {"FLOAT": [1.5] * 40, "DOUBLE": [0.5] * 3, "INT32": [0, 127, 128, -1], "UINT64": [2**63, 1]}
    kinds |= {"INT64": [-(2**62), 2**35, 300], "INT8": [-128, 127, 3] * 70, "STRING": [b"ab", b""]}
    tensors, expected = [], {}
    for kind, values in kinds.items():
        tensors.append(onnx.helper.make_tensor(kind, getattr(onnx.TensorProto, kind), [len(values)], values))
        held = "int32_data" if kind == "INT8" else f"{kind.lower()}_data"
        alone = onnx.TensorProto(**{held: getattr(tensors[-1], held)}).SerializeToString()
        frames = 2 * len(values) if kind == "STRING" else 2 + (len(alone) > 2 + 127)
        expected[kind] = len(alone) - frames
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors)).SerializeToString())
    found = audit_onnx(path)
    weights = ("FLOAT", "DOUBLE", "INT8")
    assert {t.name: t.nbytes for t in found.tensors} == {kind: expected[kind] for kind in weights}
    assert found.parts["other tensors"] == sum(size for kind, size in expected.items() if kind not in weights)
    assert found.tensors[2].codes.view(np.int8).tolist() == kinds["INT8"]


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"1")
    refused = "ONNX files need the package onnx, which is not installed: pip install -r requirements-onnx.txt"
    assert call(MAIN, "inspect", path).error().endswith(refused)


def test_damaged_onnx(onnx_files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for data in (onnx_files["float"].read_bytes()[:-20], b"", b"\x07\x07"):
        path.write_bytes(data)
        assert f"{path} is no ONNX file, or damaged" in call(MAIN, "inspect", path).error()
    assert "--float is for packed files" in call(MAIN, "inspect", path, "--float", path).error()


def test_numbers_in_other_files(onnx_files: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(str(onnx_files["float"])), str(path), save_as_external_data=True, size_threshold=0)
    with pytest.raises(UserError, match="lies in another file: save the model as a single one"):
        audit_onnx(path)


def test_the_screen(onnx_files: dict[str, Path]) -> None:
    out = call(MAIN, "inspect", onnx_files["4bit"]).good().out
    total = onnx_files["4bit"].stat().st_size
    sizes = [int(line.split()[-2].replace(",", "")) for line in out.splitlines() if line.endswith("%")]
    assert sum(sizes[:-1]) == sizes[-1] == total
    steps = next_steps(audit_onnx(onnx_files["4bit"]).tensors, total)
    assert f"{steps[0].saved:,}" in out and "bits per parameter" in out
