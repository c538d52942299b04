"""Estimated sizes by hand, and the table."""

from __future__ import annotations

import copy
import json

import pytest

from lowbit_k2.models import CtcConfig, make_model
from lowbit_k2.quant import QuantConfig, QuantReport, ReportRow, TensorScheme, quantize_model


@pytest.mark.parametrize(
    ("bits", "row_bytes"),
    [(1, 17), (2, 26), (3, 49), (4, 65), (5, 82), (8, 130)],  # ceil(130/8), ceil(130/5), ceil(390/8), ...
)
@pytest.mark.parametrize(("granularity", "num_steps"), [("tensor", 1), ("channel", 3), ("block64", 9)])
def test_bytes_of_a_tensor(bits: int, row_bytes: int, granularity: str, num_steps: int) -> None:
    row = ReportRow("w", "output", (3, 10, 13), (bits,), granularity=granularity)
    assert row.bytes_at(bits) == 3 * row_bytes + 4 * num_steps
    assert row.bytes_at(32) == 4 * 390


def test_precision_of_a_tensor() -> None:
    switched, fixed = ReportRow("a", "attention", (4, 4), (2, 1), True), ReportRow("b", "norm", (4,), (16,))
    assert [switched.bits_at(p) for p in (32, 2, 1)] == [32, 2, 1]
    assert [fixed.bits_at(p) for p in (32, 2, 1)] == [32, 16, 16]
    assert fixed.bytes_at(1) == 8


def test_totals(make_model) -> None:
    report = quantize_model(make_model(), QuantConfig.preset("lossless16", precisions=(2, 1)))
    assert report.columns == (32, 2, 1)
    assert report.bytes_at(32) == 4 * report.num_weights
    for precision in report.columns:
        assert report.bytes_at(precision) == sum(report.bytes_at(precision, role) for role in report.roles)
    assert report.ratio(1) > report.ratio(2) > 1.0 == report.ratio(32)


def test_sizes_of_the_papers_model_agree_with_methods() -> None:
    """34.03 M parameters; at 1 bit 9.2x with float leftovers, 17.5x with them at 8 bits, 20.6x at 4."""
    plain = make_model(CtcConfig.preset("paper", vocab_size=2000)).to("meta")  # only shapes matter
    vectors = dict.fromkeys(("norm", "bias"), TensorScheme((32,)))
    for preset, ratio in (("paper", 9.2), ("lossless16", 17.5), ("all-low", 20.6)):
        report = quantize_model(copy.deepcopy(plain), QuantConfig.preset(preset, schemes=vectors))
        assert report.num_weights == pytest.approx(34.03e6, rel=1e-3)
        assert report.ratio(1) == pytest.approx(ratio, abs=0.1)


def test_table_is_readable_and_says_that_it_estimates(make_model) -> None:
    table = str(quantize_model(make_model(), QuantConfig.preset("paper")))
    lines = table.splitlines()
    assert lines[0].split()[:4] == ["role", "tensors", "weights", "bits"]
    assert any(line.startswith("subsampling") and "paper leaves it float" in line for line in lines)
    assert any(line.startswith("encoder_linear") and " 2/1 " in line for line in lines)
    assert "estimate" in lines[-1] and max(map(len, lines)) < 200


def test_dict_is_json(make_model) -> None:
    config = QuantConfig("x", {"output": TensorScheme((8,), "lsq")})
    value = json.loads(json.dumps(quantize_model(make_model(), config).to_dict()))
    assert value["name"] == "x" and value["num_alphas"] == 1
    output = next(t for t in value["tensors"] if t["name"] == "ctc_head.weight")
    assert output["bits"] == [8] and output["estimated_bytes"] == {"32": 7 * 20 * 4}
    assert value["estimated_bytes"]["output"] == output["estimated_bytes"]


def test_empty_report() -> None:
    report = QuantReport("none", (32,), ())
    assert report.num_weights == 0 and report.columns == (32,)
