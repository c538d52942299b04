"""save_packed and load_packed: models of one's own, bitwise, tied weights once, inputs and tables restored."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.errors import UserError
from lowbit_k2.export import load_packed, packed_tensors, save_packed
from lowbit_k2.packed import PackedFileError, read_packed
from lowbit_k2.quant import QuantConfig, TensorScheme, quantize_model, use_precision


class Tagger(nn.Module):
    """Names and parts that are not this project's; `tied` writes with the table that it reads with."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.conv, self.norm = nn.Conv1d(16, 16, 3, padding=1), nn.BatchNorm1d(16)
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 40, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)  # (N, T, C)
        x = self.norm(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return self.head(self.mix(x).tanh())


def trained(make: Callable[[], nn.Module], config: QuantConfig) -> nn.Module:
    """Quantized, with all that training moves off its place."""
    torch.manual_seed(3)
    model = make()
    quantize_model(model, config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.0 + 0.2 * torch.rand_like(p))
    model(ids())  # moves BatchNorm
    return model.eval()


def ids() -> Tensor:
    return torch.randint(0, 40, (3, 11), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check(model: nn.Module, path: Path, make: Callable[[], nn.Module]) -> nn.Module:
    """Save and load under the present assignment; outputs and weights are bitwise the same."""
    save_packed(model, path, {"origin": "test"})
    expected = model(ids())
    torch.manual_seed(99)
    plain = make()
    assert load_packed(path, plain) is plain and not plain.training
    assert plain(ids()).numpy().tobytes() == expected.numpy().tobytes()
    return plain


@pytest.mark.parametrize("preset", ["float", "paper", "lossless16", "all-low"])
def test_bitwise_at_every_precision(preset: str, tmp_path: Path) -> None:
    config = QuantConfig.preset(preset)
    model = trained(Tagger, config)
    for bits in (*config.switched_precisions, 32):
        with use_precision(model, bits):
            check(model, tmp_path / "a", Tagger)
    assert read_packed(tmp_path / "a").extra == {"origin": "test"}


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return Tagger(tied=True)

    model = trained(make, QuantConfig.preset("all-low"))
    plain = check(model, tmp_path / "a", make)
    assert plain.head.weight is plain.table.weight
    tensors = {t.name: t for t in read_packed(tmp_path / "a").tensors}
    assert tensors["table.weight"].aliases == ("head.weight",) and "head.weight" not in tensors
    check(model, tmp_path / "a", Tagger)  # a model that is not tied gets both


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_tables_are_stored_as_indices(bits: int, tmp_path: Path) -> None:
    scheme = TensorScheme((bits,), quantizer="codebook")
    config = QuantConfig("tables", dict.fromkeys(("linear", "convolution", "embedding"), scheme))
    model = trained(Tagger, config)
    check(model, tmp_path / "a", Tagger)
    tensor = next(t for t in read_packed(tmp_path / "a").tensors if t.name == "mix.weight")
    assert tensor.encoding == f"index{bits}" and len(tensor.table) == 2**bits


def test_quantized_inputs_come_back(tmp_path: Path) -> None:
    scheme = TensorScheme((2, 1), input_bits=8)
    config = QuantConfig("w2a8", {"linear": scheme, "convolution": TensorScheme((4,), "lsq", input_bits=4)})
    model = trained(Tagger, config)
    for bits in (2, 1):
        with use_precision(model, bits):
            check(model, tmp_path / "a", Tagger)
    inputs = {t.name: t.input_bits for t in read_packed(tmp_path / "a").tensors if t.input_bits}
    assert inputs == {"conv.weight": 4, "mix.weight": 8, "head.weight": 8}
    with use_precision(model, 32):
        check(model, tmp_path / "a", Tagger)
    assert not any(t.input_bits for t in read_packed(tmp_path / "a").tensors)


def test_quantized_inputs_of_tied_weights(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return Tagger(tied=True)

    config = QuantConfig("x", {"embedding": TensorScheme((4,), "lsq", input_bits=8)})
    check(trained(make, config), tmp_path / "a", make)


def test_refusals(tmp_path: Path) -> None:
    model = trained(Tagger, QuantConfig.preset("all-low"))
    save_packed(model, tmp_path / "a")

    def other(change: Callable[[nn.Module], None]) -> nn.Module:
        plain = Tagger()
        change(plain)
        return plain

    wider = other(lambda m: setattr(m, "mix", nn.Linear(16, 17)))
    more = other(lambda m: setattr(m, "more", nn.Linear(2, 2)))
    fewer = other(lambda m: delattr(m, "mix"))
    for plain, word in ((wider, "shape"), (more, "lacks more.weight"), (fewer, "which the model has not")):
        with pytest.raises(UserError, match=word) as caught:
            load_packed(tmp_path / "a", plain)
        assert "\n" not in str(caught.value) and "architecture" in str(caught.value) or word == "shape"
    with pytest.raises(UserError, match="plain model"):
        load_packed(tmp_path / "a", model)
    with pytest.raises(PackedFileError, match="does not exist"):
        load_packed(tmp_path / "b", Tagger())
    with torch.no_grad():
        model.mix.parametrizations.weight[0].alphas["2"].fill_(0.0)
    with pytest.raises(UserError, match=r"mix.weight: its alpha at 2 bits"):
        packed_tensors(model)


def test_loading_makes_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(*(nn.Linear(128, 128) for _ in range(12)))

    save_packed(make(), tmp_path / "a")
    plain, whole = make(), 12 * 128 * 128 * 4
    tracemalloc.start()  # sees numpy's memory
    load_packed(tmp_path / "a", plain)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole / 12 < peak < whole / 3
