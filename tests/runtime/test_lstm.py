"""LSTMs of the runtime against the torch models that they were exported from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowbit_k2.core.encoders import LstmConfig
from lowbit_k2.decode import transducer
from lowbit_k2.errors import UserError
from lowbit_k2.export import load_packed_model
from lowbit_k2.models import CtcConfig, TransducerConfig
from lowbit_k2.quant import QuantConfig
from lowbit_k2.runtime import PackedCtc, PackedTransducer, lstm
from lowbit_k2.runtime.search import BeamStream, GreedyStream, greedy_search, modified_beam_search
from lowbit_k2.runtime.weights import Arithmetic
from tests.runtime.models import export, random_model
from tests.runtime.tensors import relative_error

SIZES = {"num_features": 20, "d_model": 24, "num_layers": 3, "stack_frames": 3}
SHAPES = {
    "one direction": {},
    "projected": {"cell_dim": 40},
    "half of the frames": {"reduce_after": 1, "layer_norm": False},
    "both directions": {"bidirectional": True},
    "both, projected": {"bidirectional": True, "cell_dim": 17, "reduce_after": 2},
}
FEATURES = np.random.default_rng(1).normal(size=(100, 20)).astype(np.float32)


def exported(path: Path, quant: QuantConfig, kind: type = CtcConfig, **sizes: Any) -> Path:
    of_encoder = {name: sizes.pop(name) for name in list(sizes) if name in LstmConfig.__dataclass_fields__}
    encoder = LstmConfig(**{**SIZES, **of_encoder})
    return export(random_model(quant, kind, encoder=encoder, **sizes), path)


@torch.no_grad()
def by_torch(path: Path, features: np.ndarray) -> np.ndarray:
    model = load_packed_model(path).model
    return model.encoder(torch.from_numpy(features)[None], torch.tensor([len(features)]))[0][0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("engine", ["library", "numpy"])
def test_the_encoder_is_that_of_torch(shape: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported(tmp_path / "a", QuantConfig.preset("mixed", (4,)), **SHAPES[shape])
    if engine == "numpy":
        for module in ("lstm", "matrix", "layers"):
            monkeypatch.setattr(f"lowbit_k2.runtime.{module}.library", lambda: None)
    expected = by_torch(path, FEATURES)
    for mode, error in (("exact", 1e-5), ("a16", 1e-3), ("a8", 0.1)):
        found = PackedCtc.load(path, mode, threads=2).encode(FEATURES)
        assert found.shape == expected.shape and relative_error(found, expected) < error


@pytest.mark.parametrize("quantizer", [{"quantizer": "gq", "scale": "absmax"}, {"quantizer": "codebook"}])
def test_tables(quantizer: dict[str, str], tmp_path: Path) -> None:
    path = exported(tmp_path / "a", QuantConfig.preset("mixed", (5,), **quantizer))
    expected = by_torch(path, FEATURES)
    for mode, error in (("exact", 1e-5), ("a16", 1e-3), ("a8", 0.1)):
        assert relative_error(PackedCtc.load(path, mode).encode(FEATURES), expected) < error


@pytest.mark.parametrize("shape", ["one direction", "projected", "half of the frames"])
def test_chunks_are_the_whole(shape: str, tmp_path: Path) -> None:
    network = PackedCtc.load(exported(tmp_path / "a", QuantConfig.preset("all-low"), **SHAPES[shape]), "exact")
    whole, state, parts = network.encode(FEATURES), None, []
    for chunk in np.split(FEATURES, [0, 1, 2, 3, 17, 18, 60]):
        given = state
        part, state = network.encoder.stream(chunk, state)
        parts.append(part)
        if given is not None:  # it is left as it was, so that a stream can go on from it twice
            np.testing.assert_array_equal(part, network.encoder.stream(chunk, given)[0])
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-5)


def test_both_directions_do_not_stream(tmp_path: Path) -> None:
    network = PackedCtc.load(exported(tmp_path / "a", QuantConfig.preset("float"), bidirectional=True))
    with pytest.raises(UserError, match="cannot stream"):
        network.encoder.stream(FEATURES)


@pytest.mark.parametrize("streams", [1, 3])
def test_a_layer_against_float64(isa: str, streams: int, tmp_path: Path) -> None:
    """Gates that saturate, too."""
    path = exported(tmp_path / "a", QuantConfig.preset("float"), cell_dim=33)
    network = PackedCtc.load(path, "exact")
    layer = network.encoder.layers[0][0]
    rng = np.random.default_rng(2)
    gates = rng.normal(0, 30, (7, streams, 4 * 33)).astype(np.float32)
    h, c = rng.normal(size=(streams, 24)).astype(np.float32), rng.normal(size=(streams, 33)).astype(np.float32)
    hidden, projection = (
        torch.from_numpy(load_packed_model(path).model.state_dict()[f"encoder.layers.0.lstm.{name}"].double().numpy())
        for name in ("weight_hh_l0", "weight_hr_l0")
    )
    state, expected = torch.from_numpy(h).double(), []
    cell = torch.from_numpy(c).double()
    for of_inputs in torch.from_numpy(gates).double():
        i, f, g, o = (of_inputs + state @ hidden.T).chunk(4, dim=-1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        state = (o.sigmoid() * cell.tanh()) @ projection.T
        expected.append(state)
    found = lstm.recur(layer.hidden, layer.projection, gates, h, c, Arithmetic("exact"))
    assert relative_error(found, torch.stack(expected).numpy()) < 2e-6
    assert relative_error(c, cell.numpy()) < 2e-6 and relative_error(h, state.numpy()) < 2e-6


@pytest.mark.parametrize("decoder", [{"decoder_layers": 2}, {"decoder_kind": "stateless", "context_size": 2}])
def test_hypotheses_are_those_of_torch(decoder: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"decoder_kind": "lstm", "decoder_dim": 16, **decoder}
    path = exported(tmp_path / "a", QuantConfig.preset("mixed", (5,)), TransducerConfig, **sizes)
    packed, network = load_packed_model(path).model, PackedTransducer.load(path, "exact")
    encoder_out = np.random.default_rng(3).normal(0, 6, (60, 24)).astype(np.float32)
    inputs = torch.from_numpy(encoder_out)[None], torch.tensor([60])
    [expected] = transducer.greedy_search(packed, *inputs)
    assert greedy_search(network, encoder_out).labels == expected.labels and len(set(expected.labels)) > 3
    for beam_size in (1, 4):
        [nbest] = transducer.modified_beam_search(packed, *inputs, beam_size=beam_size)
        found = modified_beam_search(network, encoder_out, beam_size)
        assert found[0].labels == nbest[0].labels and len(found) == len(nbest)
        assert np.allclose([hyp.log_prob for hyp in found], [hyp.total for hyp in nbest], atol=1e-3)


@pytest.mark.parametrize("kind", [GreedyStream, BeamStream])
def test_a_search_of_chunks_is_that_of_the_whole(kind: type, tmp_path: Path) -> None:
    path = exported(tmp_path / "a", QuantConfig.preset("float"), TransducerConfig, decoder_kind="lstm", decoder_dim=16)
    network = PackedTransducer.load(path, "exact")
    encoder_out = np.random.default_rng(3).normal(0, 6, (60, 24)).astype(np.float32)
    whole, stream, said = kind(network), kind(network), ()
    whole.accept(encoder_out)
    for chunk in np.split(encoder_out, [0, 1, 20, 55]):
        said += stream.accept(chunk)
        assert said == stream.best.labels[: len(said)]
    assert stream.best.labels == whole.best.labels and stream.best.frames == whole.best.frames
    assert stream.best.log_prob == pytest.approx(whole.best.log_prob, rel=1e-5)
    assert said and len(stream.best.labels) > 3
