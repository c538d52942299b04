"""From a quantized model to its file: N bits take N bits a weight, in odd sizes and for every kind of quantizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lowbit_k2.export import load_packed, load_packed_model, pack_model, save_packed
from lowbit_k2.packed import read_packed, size_table
from lowbit_k2.quant import GeneralQuantization, QuantConfig, TensorScheme, quantize_model
from tests.export.toy import toy_batch, toy_model

ROWS, COLS = 13, 37  # 37 weights of 5 bits: 24 bytes, seven bits left over
KINDS = {"linear": "int", "codebook": "index", "gq": "index"}


class Net(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(COLS, ROWS, bias=False), nn.Tanh(), nn.Conv1d(1, 3, 5, bias=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_bytes_of_a_file(kind: str, bits: int, tmp_path: Path) -> None:
    model, x = Net(), torch.randn(1, COLS)
    scheme = TensorScheme((bits,), quantizer=kind)
    report = quantize_model(model, QuantConfig("test", {"linear": scheme, "convolution": scheme}))
    if kind == "gq":
        GeneralQuantization(model, [bits]).apply(None)
    model.eval()
    save_packed(model, tmp_path / "a")
    rest = 4 if kind == "linear" else 4 + 4 * 2**bits  # a step, and a table
    tensors = read_packed(tmp_path / "a").tensors
    for tensor, (rows, cols) in zip(tensors, ((ROWS, COLS), (3, 5)), strict=True):
        assert tensor.encoding == f"{KINDS[kind]}{bits}" and tensor.data.nbytes == rows * -(-cols * bits // 8)
        assert tensor.nbytes == tensor.data.nbytes + rest
    table = size_table(read_packed(tmp_path / "a"))
    parts = table.file.header + table.file.index + table.file.tokens
    assert (tmp_path / "a").stat().st_size == parts + sum(tensor.nbytes for tensor in tensors)
    assert report.bytes_at(bits) == sum(tensor.nbytes for tensor in tensors)
    plain = load_packed(tmp_path / "a", Net())
    assert torch.equal(plain[0].weight, model[0].weight) and torch.equal(plain(x), model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_coded_files_of_a_recogniser(kind: str, tmp_path: Path) -> None:
    """Bitwise the same log posteriors from a file with coded codes."""
    toy = toy_model(precisions=(5,), quantizer=kind)
    with torch.no_grad():
        for name, parameter in toy.model.named_parameters():
            if parameter.dim() > 1 and name.endswith("original"):  # as trained weights: most of them small
                parameter.mul_(parameter.abs() / parameter.abs().max())
    pack_model(toy, tmp_path / "plain")
    pack_model(toy, tmp_path / "coded", compress=True)
    sizes = [(tmp_path / name).stat().st_size for name in ("coded", "plain")]
    coded = [t for t in read_packed(tmp_path / "coded").tensors if t.coded_bytes is not None]
    assert (sizes[0] < sizes[1] and coded) or kind == "codebook"
    with torch.no_grad():
        expected = toy.model(*toy_batch())[0]
        for name in ("plain", "coded"):
            assert torch.equal(load_packed_model(tmp_path / name).model(*toy_batch())[0], expected)
