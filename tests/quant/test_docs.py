"""The Python of pages of documentation, run block by block in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lowbit_k2.quant import QUANTIZERS, STATISTICS, export_tensors, quantize_model
from lowbit_k2.quant.scales import measure, scale_from_statistic

ROOT = Path(__file__).resolve().parents[2]


def run_page(page: str, scratch: Path) -> dict:
    """Execute the blocks of a page; lines are numbered as in the page, for tracebacks."""
    path = ROOT / "docs" / page
    text = path.read_text(encoding="utf-8")
    names: dict = {"SCRATCH": scratch, "__name__": "page"}
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert blocks, f"{page} has no Python"
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(path), "exec"), names)
    return names


@pytest.fixture
def registries():
    """What a page registers is forgotten afterwards."""
    known = [(registry, set(registry)) for registry in (QUANTIZERS, STATISTICS)]
    yield
    for registry, names in known:
        for name in set(registry) - names:
            del registry[name]


@pytest.mark.filterwarnings("ignore")
def test_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page("own-model.md", tmp_path)
    size = (tmp_path / "tagger.lowbit").stat().st_size
    assert size < 0.35 * 4 * names["report"].num_weights, "the tied matrix is stored once, in few bits"


@torch.no_grad()
def test_hubert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page("hubert.md", tmp_path)
    size = (tmp_path / "tiny.lowbit").stat().st_size
    assert abs(size - names["report"].bytes_at(1)) < 10_000, "the report's estimate is that of the file"


def test_adding_a_quantizer(tmp_path: Path, registries) -> None:
    names = run_page("adding-a-quantizer.md", tmp_path)
    weight = torch.randn(6, 150)
    for granularity in ("tensor", "channel", "block64"):
        groups = [weight.flatten()] if granularity == "tensor" else list(weight)
        if granularity == "block64":
            groups = [block for row in weight for block in row.split(64)]
        expected = torch.stack([g.abs().sort(descending=True).values[int(0.01 * len(g))] for g in groups])
        found = measure(weight, "p99", granularity)
        assert torch.equal(found.flatten(), expected)
        torch.testing.assert_close(scale_from_statistic(found, "p99", 4).flatten(), expected / 7)
    model = names["model"]
    tensor = next(t for t in export_tensors(model) if t.name == "0.weight")
    assert tensor.bits == 4 and tensor.codes.abs().max() >= 4
    assert torch.equal(tensor.dequantize(), model[0].weight) and tensor.step.log2() == tensor.step.log2().round()
    model(torch.randn(3, 64)).sum().backward()
    assert model[0].parametrizations.weight.original.grad is not None
    with pytest.raises(Exception, match="already"):
        quantize_model(model, names["QuantConfig"]("again"))


def test_the_registries_refuse(registries) -> None:
    from lowbit_k2.errors import UserError
    from lowbit_k2.quant import LinearQuantizer, register_quantizer, register_statistic

    register_quantizer("linear", LinearQuantizer)  # the same again does no harm
    for refused in (
        lambda: register_quantizer("codebook", LinearQuantizer),
        lambda: register_quantizer("mine", torch.nn.Linear),
        lambda: register_statistic("lsq", measure, scale_from_statistic),
        lambda: register_statistic("mine", measure, scale_from_statistic, "never"),
    ):
        with pytest.raises(UserError):
            refused()
