"""train.py --dry-run: its numbers against packed files, and against activations counted by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lowbit_k2.asr import dry_run as module
from lowbit_k2.asr.dry_run import Memory, dry_run, kept_bytes, measure_sizes
from lowbit_k2.asr.model_io import build_model
from lowbit_k2.data.batch import Batch
from lowbit_k2.errors import UserError
from lowbit_k2.k2_compat import has_k2
from lowbit_k2.models import CtcConfig
from lowbit_k2.quant import QuantConfig, use_precision
from lowbit_k2.recipe.training_flags import read_training_flags, training_parser

SMALL = "--d-model 16 --num-layers 4 --num-heads 2 --ffn-dim 32 --subsampling-channels 4"


def run(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str) -> str:
    """What is printed; nothing may be written."""
    parser = training_parser("", exp_dir=folder / "exp", lang_dir=folder / "lang", manifest_dir=folder / "fbank")
    dry_run(read_training_flags(parser.parse_args([*SMALL.split(), *flags])))
    assert not list(folder.iterdir())
    return capsys.readouterr().out


def test_all_that_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screen = run(capsys, tmp_path, "--vocab-size", "40")
    config = CtcConfig.preset(
        "tiny", vocab_size=40, d_model=16, num_layers=4, num_heads=2, ffn_dim=32, subsampling_channels=4
    )
    model, report = build_model(config, QuantConfig.preset("lossless16", precisions=(2, 1)))
    assert screen.startswith(f"tiny, ctc, 40 tokens: {report.num_weights / 1e6:.2f} M parameters\n{report}\n")
    rows = re.findall(r"^(\S+) +(\S+) +([\d.]+) +([\d.]+)x$", screen, re.MULTILINE)
    assert [row[:2] for row in rows] == [("float", "32")] + [
        (name, bits) for name in ("paper", "lossless16", "all-low") for bits in ("2", "1.5", "1")
    ]
    assert float(rows[0][3]) == 1 and float(rows[1][3]) > 1
    for name in ("paper", "lossless16", "all-low"):
        sizes = [float(row[2]) for row in rows if row[0] == name]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] < float(rows[0][2])
    assert "3 passes" in screen and "--max-duration 200: about" in screen


def test_precisions_are_those_of_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    naive = run(capsys, tmp_path, "--precisions", "1")
    assert len(re.findall(r"^lossless16 +1 ", naive, re.MULTILINE)) == 1 and " 1.5 " not in naive
    floating = run(capsys, tmp_path, "--precisions", "32")
    assert len(re.findall(r"^lossless16 +[21] ", floating, re.MULTILINE)) == 2, "what it could be packed in"
    with pytest.raises(UserError, match="--quant-config float has no tensors"):
        run(capsys, tmp_path, "--quant-config", "float")


def test_a_float_teacher_is_a_pass_and_options_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screens = [run(capsys, tmp_path, "--precisions", "2,1", *more) for more in ([], ["--teacher", "32"])]
    assert "; 2 passes" in screens[0] and "; 3 passes" in screens[1]
    finer = run(capsys, tmp_path, "--precisions", "2,1", "--granularity", "channel")
    sizes = [float(re.search(r"^all-low +1 +([\d.]+)", s, re.MULTILINE)[1]) for s in (screens[0], finer)]
    assert sizes[0] < sizes[1], "a step for every row takes room"


@pytest.mark.parametrize("objective", ["rnnt", "ctc-rnnt"])
def test_transducers(tmp_path: Path, capsys: pytest.CaptureFixture[str], objective: str) -> None:
    flags = ["--objective", objective, "--decoder-dim", "8", "--joiner-dim", "8", "--use-bf16", "true"]
    if not has_k2():
        with pytest.raises(UserError, match="k2"):
            run(capsys, tmp_path, *flags)
        return
    assert f"tiny, {objective}, 500 tokens" in run(capsys, tmp_path, *flags)


def test_measured_sizes_are_those_of_the_report_and_headers() -> None:
    config = CtcConfig.preset("tiny", vocab_size=30)
    quant = QuantConfig.preset("lossless16", precisions=(2, 1))
    _, report = build_model(config, quant)
    for _, precision, size in measure_sizes(config, {"lossless16": quant}):
        if precision != "1.5":
            payload = report.bytes_at(int(precision))
            assert payload < size < payload + 30_000, "header, index and BatchNorm's statistics"


def test_kept_bytes_by_hand() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5), nn.Tanh())
    # Linear keeps its input, ReLU and Tanh their outputs; ReLU's is the second Linear's input.
    for num in (3, 6):
        features = torch.randn(num, 10)
        assert kept_bytes(lambda x=features: model(x).sum(), model) == 4 * num * (10 + 20 + 5)


def test_a_pass_is_measured_with_its_quantization() -> None:
    """The quantized weights belong to the pass, not to the seconds; the state has six words a weight."""
    config = CtcConfig.preset("tiny", vocab_size=30, num_layers=1)
    found = {}
    for name in ("float", "lossless16"):
        quant = QuantConfig.preset(name) if name == "float" else QuantConfig.preset(name, precisions=(2, 1))
        model, report = build_model(config, quant)
        model.train()

        def one_pass(batch: Batch, model=model, bits=32 if name == "float" else 2):
            with use_precision(model, bits):
                return model(batch.inputs, batch.input_lens)[0].sum()

        found[name] = module.measure_memory(model, one_pass, 30)
        assert 24 <= found[name].state / report.num_weights < 24.5
    quantized = 4 * sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert found["lossless16"].per_pass - found["float"].per_pass > quantized
    assert found["lossless16"].per_second == pytest.approx(found["float"].per_second, rel=0.1)


def test_the_batch_that_fits() -> None:
    memory = Memory(state=10, per_pass=5, per_second=0.5)
    assert memory.total(10) == 20 and memory.seconds_in(20) == 10 and memory.seconds_in(12) == 0
