"""The preset `lossless16` keeps its name: on the paper's encoder the 1-bit file is over 16.6 times smaller, on disk."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from lowbit_k2.export import export_float, pack_model
from lowbit_k2.models import CtcConfig, make_model
from lowbit_k2.quant import Allocation, QuantConfig, quantize_model, use_precision


@pytest.mark.parametrize(("preset", "at_least"), [("lossless16", 16.6), ("all-low", 19.5)])
def test_ratio_on_disk_of_the_papers_encoder(tmp_path, preset, at_least):
    model = make_model(CtcConfig.preset("paper", vocab_size=2000)).eval()
    config = QuantConfig.preset(preset, precisions=(2, 1))
    quantize_model(model, config)
    tokens = random.Random(0).randbytes(50_000)  # a sentencepiece model of 2000 pieces has about 30 kB
    loaded = SimpleNamespace(
        model=model,
        model_config=model.config,
        tokenizer=SimpleNamespace(kind="sentencepiece", to_bytes=lambda: tokens),
        features={},
    )
    export_float(loaded, tmp_path / "float", {"reference": True})
    float_bytes = (tmp_path / "float").stat().st_size
    ratios = {}
    for precision in ("1", "1.5", "2"):
        with use_precision(model, Allocation.parse(precision, 12, config.layer_prefix)):
            pack_model(loaded, tmp_path / precision)
        ratios[precision] = float_bytes / (tmp_path / precision).stat().st_size
    print({p: round(r, 2) for p, r in ratios.items()})
    assert ratios["1"] >= at_least
    assert ratios["1"] > ratios["1.5"] > ratios["2"] > 12
