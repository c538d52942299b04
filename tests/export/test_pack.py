"""Torch model to packed file and back: bitwise the same logits, at every assignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit_k2.core.encodings import encoding_of
from lowbit_k2.core.grids import PRECISIONS
from lowbit_k2.errors import UserError
from lowbit_k2.export import export_float, load_packed_model, pack_model, packed_tensors
from lowbit_k2.packed import PackedFileError, PackedModel, read_packed, size_table, write_packed
from lowbit_k2.quant import Allocation, TensorScheme, plain_state_dict, use_precision
from lowbit_k2.quant.walker import quant_config_of
from tests.export.toy import CONFIG, Toy, toy_batch, toy_model

ASSIGNMENTS = ["1", "2", "1.5", "1.5r", "2,1,1,2"]


def assign(toy: Toy, text: str):
    return Allocation.parse(text, CONFIG.num_layers, quant_config_of(toy.model).layer_prefix)


@torch.no_grad()
def check_same(toy: Toy, path: Path) -> None:
    """Under the present assignment: pack, load, and compare weights and log posteriors bit by bit."""
    pack_model(toy, path)
    expected, lens = toy.model(*toy_batch())
    loaded = load_packed_model(path).model
    state, plain = loaded.state_dict(), plain_state_dict(toy.model)
    assert state.keys() == plain.keys()
    for name, value in plain.items():
        if value.is_floating_point():
            assert state[name].numpy().tobytes() == value.numpy().tobytes(), name
    log_probs, found = loaded(*toy_batch())
    assert torch.equal(log_probs, expected) and torch.equal(lens, found)
    assert log_probs.numpy().tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("text", ASSIGNMENTS)
@pytest.mark.parametrize("preset", ["paper", "lossless16", "all-low"])
def test_logits_are_bitwise_those_of_the_quantized_model(preset: str, text: str, tmp_path: Path) -> None:
    toy = toy_model(preset)
    with use_precision(toy.model, assign(toy, text)):
        check_same(toy, tmp_path / "a")


@pytest.mark.parametrize("granularity", ["channel", "block64"])
@pytest.mark.parametrize("scale", ["2std-clipped", "absmean", "lsq"])
def test_other_scales_and_granularities(scale: str, granularity: str, tmp_path: Path) -> None:
    toy = toy_model(scale=scale, granularity=granularity)
    with use_precision(toy.model, assign(toy, "1.5")):
        check_same(toy, tmp_path / "a")
        granular = [t for t in packed_tensors(toy.model) if t.role == "encoder_linear"]
        assert {t.granularity for t in granular} == {granularity}


@pytest.mark.parametrize("bits", [b for b in PRECISIONS if 2 < b <= 16])
def test_every_precision(bits: int, tmp_path: Path) -> None:
    scheme = TensorScheme((bits,), scale="running-absmax")
    toy = toy_model(precisions=(bits,), schemes={"convolution": scheme, "output": scheme})
    check_same(toy, tmp_path / "a")
    encodings = {t.encoding for t in read_packed(tmp_path / "a").tensors if t.role in ("encoder_linear", "output")}
    assert encodings == {encoding_of(bits).name}


def test_layer_norm_and_a_float_model(tmp_path: Path) -> None:
    check_same(toy_model("float", conv_norm="layer"), tmp_path / "a")
    check_same(toy_model("float"), tmp_path / "b")
    assert {t.encoding for t in read_packed(tmp_path / "b").tensors} == {"float32"}


def test_a_mixed_model_stores_each_layer_in_its_own_encoding(tmp_path: Path) -> None:
    toy = toy_model()
    with use_precision(toy.model, assign(toy, "2,1,1,2")):
        pack_model(toy, tmp_path / "a")
    tensors = {t.name: t for t in read_packed(tmp_path / "a").tensors}
    encodings = [tensors[f"encoder.layers.{i}.ff1.w1.weight"].encoding for i in range(4)]
    assert encodings == ["ternary", "binary", "binary", "ternary"]
    assert tensors["encoder.layers.0.conv.pointwise1.weight"].encoding == "int4"
    assert tensors["ctc_head.weight"].encoding == "int8"
    assert tensors["ctc_head.bias"].encoding == "float16" and tensors["ctc_head.bias"].role == "bias"
    assert tensors["encoder.layers.3.conv.norm.running_var"].encoding == "float32"
    assert tensors["encoder.layers.3.conv.norm.running_var"].role == "norm"


def test_the_file_tells_everything_but_the_weights(tmp_path: Path) -> None:
    toy = toy_model()
    pack_model(toy, tmp_path / "a", {"precision": "2"})
    loaded = load_packed_model(tmp_path / "a")
    assert loaded.model_config == CONFIG and not loaded.model.training
    assert loaded.packed.features == toy.features and loaded.packed.extra == {"precision": "2"}
    assert loaded.packed.tokens == toy.tokenizer.to_bytes() and loaded.packed.tokens_kind == "lexicon"


def test_packing_changes_nothing_in_the_model(tmp_path: Path) -> None:
    toy = toy_model()
    before = {name: value.clone() for name, value in toy.model.state_dict().items()}
    pack_model(toy, tmp_path / "a")
    export_float(toy, tmp_path / "b")
    assert all(torch.equal(value, before[name]) for name, value in toy.model.state_dict().items())


def test_the_float_file_is_the_same_container(tmp_path: Path) -> None:
    toy = toy_model()
    with use_precision(toy.model, 1):
        pack_model(toy, tmp_path / "a")
    export_float(toy, tmp_path / "b", {"reference": True})
    packed, reference = read_packed(tmp_path / "a"), read_packed(tmp_path / "b")
    table = size_table(packed, reference)
    assert table.ratio == (tmp_path / "b").stat().st_size / (tmp_path / "a").stat().st_size > 3
    assert reference.tokens == packed.tokens and reference.sizes.tokens == packed.sizes.tokens
    latent = toy.model.ctc_head.parametrizations.weight.original.detach().numpy()
    stored = next(t for t in reference.tensors if t.name == "ctc_head.weight")
    np.testing.assert_array_equal(stored.values, latent)
    with pytest.raises(UserError, match="latent weights"):
        load_packed_model(tmp_path / "b")


@pytest.mark.parametrize("value", [0.0, -0.5, float("nan")])
def test_alphas_must_be_positive(value: float, tmp_path: Path) -> None:
    toy = toy_model()
    with torch.no_grad():
        toy.model.encoder.layers[1].ff2.w1.parametrizations.weight[0].alphas["1"].fill_(value)
    with use_precision(toy.model, 2):
        pack_model(toy, tmp_path / "a")  # the alpha of another precision does no harm
    with use_precision(toy.model, 1), pytest.raises(UserError, match=r"encoder.layers.1.ff2.w1.weight.*alpha"):
        pack_model(toy, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "name", ["encoder.layers.0.conv.norm.running_mean", "ctc_head.parametrizations.weight.original"]
)
def test_numbers_that_are_not_finite_are_refused(name: str, tmp_path: Path) -> None:
    toy = toy_model()
    with torch.no_grad():
        toy.model.state_dict()[name].view(-1)[0] = float("inf")
    with pytest.raises(UserError, match="not finite"):
        pack_model(toy, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def repack(path: Path, target: Path, **changes) -> Path:
    """A copy of a packed file with other parts; `tensors` is a function of the list."""
    model = read_packed(path)
    parts = {name: getattr(model, name) for name in ("model_config", "tokens", "tokens_kind", "features", "extra")}
    tensors = changes.pop("tensors", list)(model.tensors)
    config = dict(parts["model_config"])
    own = {name: changes.pop(name) for name in list(changes) if name in config}
    parts["model_config"] = {**config, **own, "encoder": {**config["encoder"], **changes}}
    write_packed(target, PackedModel(tensors, **parts))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 48}, "subsampling.out.weight as"),
        ({"d_model": 1 << 14}, "subsampling.out.weight as"),
        ({"vocab_size": 1 << 20}, "ctc_head.weight as"),
        ({"ffn_dim": 1 << 17}, "ff1.w1.weight as"),
        ({"num_layers": 3}, "holds encoder.layers.3.*which its configuration does not know"),
        ({"num_layers": 1000}, "the file has None"),
        ({"subsampling_channels": 1 << 12}, "conv1.weight as"),
        ({"num_features": 1 << 12}, "subsampling.out.weight as"),
        ({"conv_kernel": 7}, "depthwise.weight as"),
        ({"num_heads": 5}, "num_heads"),
        ({"conv_norm": "none"}, "conv_norm"),
        ({"conv_norm": "layer"}, "running_mean"),
        ({"d_model": "wide"}, "d_model takes a whole number"),
        ({"depth": 3}, "unknown settings depth"),
        (
            {"tensors": lambda tensors: tensors[:-1]},
            "running_var as .24,., the file has None",
        ),
        (
            {"tensors": lambda tensors: [t for t in tensors if t.name != "encoder.norm.bias"]},
            "encoder.norm.bias as .24,., the file has None",
        ),
    ],
)
def test_files_that_do_not_fit_their_own_configuration(changes: dict, message: str, tmp_path: Path) -> None:
    pack_model(toy_model(), tmp_path / "a")
    with pytest.raises(UserError, match=message) as caught:
        load_packed_model(repack(tmp_path / "a", tmp_path / "b", **changes))
    assert str(tmp_path / "b") in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_file_is_refused_by_its_checksum(tmp_path: Path) -> None:
    pack_model(toy_model(), tmp_path / "a")
    content = bytearray((tmp_path / "a").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(PackedFileError, match="checksum"):
        load_packed_model(tmp_path / "a")
