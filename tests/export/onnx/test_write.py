"""ONNX files of untrained models: numbers against torch at any shape, metadata, tokens, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.export.onnx import export_onnx
from lowbit_k2.quant import TensorScheme, use_precision
from lowbit_k2.quant.inputs import input_quantizers
from tests.export.toy import toy_batch, toy_model

PLAIN = {"type": "fbank", "num_mel_bins": 23, "normalize": "none"}


@pytest.fixture()
def ort():
    pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-onnx.txt")
    return pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed: pip install -r requirements-onnx.txt"
    )


def session(ort, path: Path):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("float", {}),
        ("4bit", {}),
        ("4bit", {"preset": "all-low", "granularity": "block64", "conv_norm": "layer"}),
        ("4bit", {"quantizer": "codebook"}),
    ],
    ids=["float", "4bit", "4bit-blocks", "4bit-codebook"],
)
@torch.no_grad()
def test_log_probs_are_those_of_the_quantized_model(ort, kind: str, options: dict, tmp_path: Path) -> None:
    toy = toy_model(**options)
    toy.features = PLAIN
    x, lens = toy_batch()
    with use_precision(toy.model, 1):
        [path, tokens] = export_onnx(toy, tmp_path, kind)
        network = session(ort, path)
        for inputs, input_lens in ((x, lens), (x[:1, :23], torch.tensor([23])), (x[:2, :7], torch.tensor([7, 7]))):
            expected, expected_lens = toy.model(inputs, input_lens)
            log_probs, found_lens = network.run(None, {"x": inputs.numpy(), "x_lens": input_lens.numpy()})
            assert found_lens.tolist() == expected_lens.tolist() and found_lens.dtype == np.int64
            for own, reference, length in zip(log_probs, expected.numpy(), found_lens, strict=True):
                np.testing.assert_allclose(own[:length], reference[:length], rtol=0, atol=1e-4)
    assert tokens.read_text().splitlines() == ["<blk> 0", *(f"▁{c} {i + 1}" for i, c in enumerate("abcdef"))]


@torch.no_grad()
def test_inputs_are_rounded_where_the_model_rounds_them(ort, tmp_path: Path) -> None:
    """An input between two numbers of its grid may fall to either side, so that the outputs agree less closely."""
    onnx = pytest.importorskip("onnx")
    bits = {"encoder_linear": (2, 1), "subsampling": (8,), "output": (8,)}
    toy = toy_model(schemes={role: TensorScheme(own, input_bits=8) for role, own in bits.items()})
    toy.features = PLAIN
    x, lens = toy_batch()
    with use_precision(toy.model, 1):
        [path, _] = export_onnx(toy, tmp_path)
        expected, expected_lens = toy.model(x, lens)
    log_probs, _ = session(ort, path).run(None, {"x": x.numpy(), "x_lens": lens.numpy()})
    for own, reference, length in zip(log_probs, expected.numpy(), expected_lens, strict=True):
        np.testing.assert_allclose(own[:length], reference[:length], rtol=0, atol=0.05)
    rounded = sum(node.op_type == "Round" for node in onnx.load(str(path)).graph.node)
    assert rounded == sum(len(input_quantizers(module)) for module in toy.model.modules()) == 20


def test_audio_below_one_output_frame_has_none(ort, tmp_path: Path) -> None:
    toy = toy_model()
    with use_precision(toy.model, 2):
        [path, _] = export_onnx(toy, tmp_path)
    for count in range(1, 7):
        x, lens = np.zeros((1, count, 23), np.float32), np.array([count])
        log_probs, found = session(ort, path).run(None, {"x": x, "x_lens": lens})
        assert found.tolist() == [0] and log_probs.shape[2] == 7


def test_metadata_and_fixed_axes(ort, tmp_path: Path) -> None:
    toy = toy_model()
    with use_precision(toy.model, 2):
        files = {kind: export_onnx(toy, tmp_path, kind, {"precision": "2"})[0] for kind in ("float", "int8", "4bit")}
    assert [path.name for path in files.values()] == ["model.onnx", "model.int8.onnx", "model.4bit.onnx"]
    for kind, path in files.items():
        network = session(ort, path)
        told = network.get_modelmeta().custom_metadata_map
        assert told["model_type"] == "zipformer2_ctc" and told["precision"] == "2" and told["weights"] == kind
        assert network.get_outputs()[0].shape == ["N", "T", 7], "sherpa-onnx reads the vocabulary here"


def test_int8_never_overflows(ort, tmp_path: Path) -> None:
    """Products of two pairs are summed in 16 bits on CPUs without VNNI: (2^8 - 1) * 64 * 2 fits."""
    onnx = pytest.importorskip("onnx")
    toy = toy_model()
    with use_precision(toy.model, 1):
        [path, _] = export_onnx(toy, tmp_path, "int8")
    graph = onnx.load(str(path)).graph
    initializers = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    matrices = [initializers[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(matrices) >= 40 and {matrix.dtype for matrix in matrices} == {np.dtype("int8")}
    assert max(abs(matrix.astype(int)).max() for matrix in matrices) == 64


@pytest.mark.parametrize(("package", "kind"), [("onnx", "float"), ("onnxruntime.quantization", "int8")])
def test_a_package_that_is_not_installed(
    package: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "int8":
        pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-onnx.txt")
    monkeypatch.setitem(sys.modules, package, None)
    toy = toy_model()
    message = f"^ONNX files need the package {package.partition('.')[0]}, .*: pip install -r requirements-onnx.txt$"
    with use_precision(toy.model, 1), pytest.raises(UserError, match=message) as caught:
        export_onnx(toy, tmp_path, kind)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_broken_package_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site/onnx"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('libprotobuf is too old')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnx"]:
        monkeypatch.delitem(sys.modules, name)
    toy = toy_model()
    with (
        use_precision(toy.model, 1),
        pytest.raises(UserError, match=r"onnx, which cannot be imported \(libprotobuf is too old"),
    ):
        export_onnx(SimpleNamespace(**vars(toy)), tmp_path / "out")
