"""The packed Conformer against the torch model that it was exported from."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit_k2.core.encoders import TdnnfConfig
from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.errors import UserError
from lowbit_k2.export import export_float, load_packed_model
from lowbit_k2.models import TransducerConfig
from lowbit_k2.packed import PackedTensor, read_packed, size_table, write_packed
from lowbit_k2.quant import QuantConfig, use_precision
from lowbit_k2.runtime import PackedCtc, UnsupportedError, layers, matrix
from lowbit_k2.runtime.conformer import relative_positions
from lowbit_k2.runtime.weights import rounded_floats
from tests.runtime.models import export, random_model, schemes, with_rare_codes


def utterance(frames: int = 71) -> np.ndarray:
    return np.random.default_rng(frames).normal(size=(frames, 20)).astype(np.float32)


@torch.no_grad()
def by_torch(model: torch.nn.Module, features: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(features)[None], torch.tensor([len(features)]))[0][0].numpy()


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape and found.dtype == np.float32
    return float(np.abs(found - expected).max() / np.abs(expected).max())


CONFIGS = {
    "paper": QuantConfig.preset("paper"),
    "lossless16": QuantConfig.preset("lossless16"),
    "all-low": QuantConfig.preset("all-low"),
    "float": QuantConfig.preset("float"),
    "4 bits by channel": schemes(bits=(4,), scale="lsq", granularity="channel"),
    "8 bits by block": schemes(bits=(8,), scale="lsq", granularity="block64"),
    "3 bits, tables": schemes(bits=(3,), quantizer="codebook"),
    "5 bits, tables on a grid": schemes(bits=(5,), quantizer="gq", scale="absmax"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_exact_is_the_torch_model(name: str, tmp_path: Path) -> None:
    model = random_model(CONFIGS[name])
    for bits in CONFIGS[name].switched_precisions or (None,):
        if bits is None:
            path, expected = export(model, tmp_path / "a"), by_torch(model, utterance())
        else:
            with use_precision(model, bits):
                path, expected = export(model, tmp_path / str(bits)), by_torch(model, utterance())
        assert difference(PackedCtc.load(path, "exact")(utterance()), expected) < 1e-5
        assert difference(PackedCtc.load(path, "a16", threads=2)(utterance()), expected) < 1e-3
        assert difference(PackedCtc.load(path, "a8")(utterance()), expected) < 0.1


@pytest.mark.parametrize("frames", [7, 8, 11, 400])
def test_lengths(frames: int, tmp_path: Path) -> None:
    model = random_model(QuantConfig.preset("paper"), conv_norm="layer")
    runtime = PackedCtc.load(export(model, tmp_path / "a"), "exact")
    assert difference(runtime(utterance(frames)), by_torch(model, utterance(frames))) < 1e-5


@pytest.mark.parametrize("bits", [8, 16])
def test_quantized_inputs(bits: int, tmp_path: Path) -> None:
    """A number between two steps may fall to either side, where float32 rounds a sum otherwise."""
    model = random_model(schemes(bits=(2,), input_bits=bits))
    path = export(model, tmp_path / "a")
    loaded = load_packed_model(path).model
    for mode in ("exact", "a16") + (("a8",) if bits == 8 else ()):
        found = PackedCtc.load(path, mode)(utterance(300))
        assert difference(found, by_torch(loaded, utterance(300))) < (2e-2 if bits == 8 else 1e-3)


def test_floats_become_integers(tmp_path: Path) -> None:
    """In "a8", each output on a grid of its own; the library then keeps a byte of each."""
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(21, 5, 3)) * 10.0 ** rng.integers(-3, 4, (21, 1, 1))).astype(np.float32)
    values[4] = 0
    floats = PackedTensor.from_values("w", "linear", "float32", values, input_bits=6)
    rounded = rounded_floats(floats)
    assert rounded.shape == floats.shape and rounded.input_bits == 6 and rounded_floats(rounded) is rounded
    largest = np.abs(values).max(axis=(1, 2))
    np.testing.assert_allclose(rounded.step, np.maximum(largest / 127, np.finfo(np.float32).tiny), rtol=1e-6)
    error = np.abs(rounded.dequantize() - values).max(axis=(1, 2))
    assert (error <= 0.501 * rounded.step).all() and (rounded.codes[4] == 0).all()

    path = export(random_model(CONFIGS["float"]), tmp_path / "a")
    layer = {mode: PackedCtc.load(path, mode).encoder.layers[0].ff1.w1.matrix.nbytes for mode in ("a16", "a8")}
    assert layer["a8"] < 0.3 * layer["a16"]


def test_coded_files(tmp_path: Path) -> None:
    """Version 3, whose codes are coded by their frequency."""
    plain = read_packed(export(random_model(schemes(bits=(4,))), tmp_path / "a"))
    model = with_rare_codes(plain)
    for name, compress in (("b", False), ("c", True)):
        write_packed(tmp_path / name, model, compress)
    assert any(tensor.coded_bytes for tensor in read_packed(tmp_path / "c").tensors)
    one, other = (PackedCtc.load(tmp_path / name, "exact")(utterance()) for name in "bc")
    assert (one == other).all()


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(QuantConfig.preset("all-low"))
    path = export(model, tmp_path / "a")
    for module in (layers, matrix):
        monkeypatch.setattr(module, "library", lambda: None)
    assert difference(PackedCtc.load(path, "exact")(utterance()), by_torch(model, utterance())) < 1e-5


@pytest.mark.parametrize("name", ["3 bits, tables", "5 bits, tables on a grid"])
def test_tables_without_the_library(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every mode; numbers between two integers may fall to either side."""
    path = export(random_model(CONFIGS[name]), tmp_path / "a")
    errors = {"exact": 1e-5, "a16": 1e-4, "a8": 3e-2}
    expected = {mode: PackedCtc.load(path, mode)(utterance()) for mode in errors}
    for module in (layers, matrix):
        monkeypatch.setattr(module, "library", lambda: None)
    for mode, error in errors.items():
        assert difference(PackedCtc.load(path, mode)(utterance()), expected[mode]) < error


def test_positions_of_utterances_of_many_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter and longer than the one before, and longer than what is kept."""
    monkeypatch.setattr("lowbit_k2.runtime.conformer.KEPT_FRAMES", 50)
    encoder = PackedCtc.load(export(random_model(QuantConfig.preset("paper")), tmp_path / "a"), "exact").encoder
    for frames in (1, 17, 3, 17, 50, 49, 51, 2):
        expected = relative_positions(frames, encoder.config.d_model)
        assert np.array_equal(encoder.positions(frames), expected)
    assert len(encoder.positions(50)) == 99 == len(encoder._positions)


def test_threads_give_the_same_bits(tmp_path: Path) -> None:
    path = export(random_model(QuantConfig.preset("paper")), tmp_path / "a")
    one, three = (PackedCtc.load(path, "a8", threads)(utterance(300)) for threads in (1, 3))
    assert (one == three).all()


def test_no_torch_is_loaded(tmp_path: Path, repo_root: Path) -> None:
    path = export(random_model(QuantConfig.preset("paper")), tmp_path / "a")
    program = f"""
import sys, numpy as np
from lowbit_k2.runtime import PackedCtc
print(PackedCtc.load({str(path)!r})(np.ones((50, 20), np.float32)).shape)
print({{"torch", "k2", "lhotse", "onnxruntime", "torchaudio"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.stdout == "(11, 30)\nset()\n", done.stderr


@pytest.mark.parametrize("frames", [1, 2, 50, 1200])
def test_positions(frames: int) -> None:
    from lowbit_k2.models.attention import relative_positions as by_torch

    expected = by_torch(frames, 24, torch.zeros(1)).numpy()
    assert np.abs(relative_positions(frames, 24) - expected).max() < 1e-6 + 1.3e-7 * frames


def test_what_it_cannot_run(tmp_path: Path) -> None:
    path = export(random_model(QuantConfig.preset("paper")), tmp_path / "a")
    with pytest.raises(UserError, match="a: mode 'a4' is unknown"):
        PackedCtc.load(path, "a4")
    with pytest.raises(UserError, match=r"features of shape \(6, 20\): an utterance is \(T, 20\) with T from 7"):
        PackedCtc.load(path)(utterance(6))
    transducer = random_model(QuantConfig.preset("float"), TransducerConfig)
    words = "b: the runtime has Conformers and LSTMs with a CTC head, not a transducer model with an encoder conformer"
    with pytest.raises(UnsupportedError, match=words):
        PackedCtc.load(export(transducer, tmp_path / "b"))
    tdnnf = random_model(QuantConfig.preset("float"), encoder=TdnnfConfig.preset("tdnnf-tiny"))
    with pytest.raises(UnsupportedError, match="c: the runtime has Conformers and LSTMs .* with an encoder tdnnf"):
        PackedCtc.load(export(tdnnf, tmp_path / "c"))
    learned = random_model(QuantConfig.preset("bit-l", precisions=(1,)))
    by_torch(learned, utterance())  # the first batch sets the grids
    path = export(learned, tmp_path / "d")
    with pytest.raises(
        UnsupportedError, match="d: the runtime does not quantize activations on grids that were learned"
    ):
        PackedCtc.load(path)
    export(learned, tmp_path / "e", lambda m, p: export_float(m, p))
    assert size_table(read_packed(path), read_packed(tmp_path / "e")).ratio > 2
    write_packed(tmp_path / "f", replace(read_packed(path), model_config=HubertConfig.preset("tiny").to_dict()))
    with pytest.raises(UnsupportedError, match="f: the runtime has Conformers and LSTMs .*, not a hubert model"):
        PackedCtc.load(tmp_path / "f")
    reference = tmp_path / "c"
    export(random_model(QuantConfig.preset("paper")), reference, lambda m, p: export_float(m, p, {"reference": True}))
    with pytest.raises(UserError, match="c: it holds the latent weights"):
        PackedCtc.load(reference)


@pytest.mark.parametrize("mode", ["exact", "a16", "a8"])
def test_calls_side_by_side_give_what_single_ones_give(mode: str, tmp_path: Path) -> None:
    """Bit for bit, of a model that all threads of Python share and of several; the library's threads serve all."""
    path = export(random_model(CONFIGS["all-low"], d_model=64, ffn_dim=(256, 256)), tmp_path / "a")
    utterances = [utterance(frames) for frames in (400, 71, 333, 40, 256)]  # the longer ones are worth several threads
    models = [PackedCtc.load(path, mode, threads) for threads in (1, 2, 3)]
    expected = [models[0](features) for features in utterances]
    jobs = [(models[2], i % 5) for i in range(15)] + [(models[i % 3], i % 5) for i in range(15)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda job: (job[1], job[0](utterances[job[1]])), jobs))
    assert all(np.array_equal(log_probs, expected[i]) for i, log_probs in found)
