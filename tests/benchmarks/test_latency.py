"""The latency benchmark: its virtual clock, that it streams what the offline search finds, and its runtimes."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch

from lowbit_k2 import launch
from lowbit_k2.asr.model_io import LoadedModel, build_model
from lowbit_k2.core.encoders import LstmConfig
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.decode.transducer import greedy_search, modified_beam_search
from lowbit_k2.errors import UserError
from lowbit_k2.export import load_packed_model, pack_model
from lowbit_k2.models import CtcConfig, TransducerConfig
from lowbit_k2.quant import QuantConfig
from tests.recipe.corpus import make_lang

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "latency.py"
FEATURES = FeatureConfig(num_mel_bins=20)


@pytest.fixture(scope="module")
def latency() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "use_project_interpreter", lambda: None)  # it changes the process
        patch.setattr(sys, "path", list(sys.path))
        spec = importlib.util.spec_from_file_location("latency", FILE)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "latency", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LSTM transducer that says something, at 5 bits of the General Quantizer."""
    folder = tmp_path_factory.mktemp("packed")
    tokenizer = load_tokenizer(make_lang(folder / "lang"))
    torch.manual_seed(5)
    encoder = LstmConfig(num_features=20, d_model=16, num_layers=2, stack_frames=3)
    sizes = {"decoder_dim": 16, "joiner_dim": 8, "decoder_kind": "lstm"}
    config = TransducerConfig(encoder, tokenizer.vocab_size, **sizes)
    quant = QuantConfig.preset("mixed", (5,), quantizer="gq", scale="absmax")
    model, _ = build_model(config, quant)
    with torch.no_grad():
        for parameter in (*model.decoder.parameters(), *model.joiner.parameters()):
            parameter.normal_()
    pack_model(LoadedModel(model.eval(), config, quant, tokenizer, FEATURES.to_dict()), folder / "gq.safetensors")
    return folder / "gq.safetensors"


def arguments(beam_size: int = 1) -> argparse.Namespace:
    return argparse.Namespace(beam_size=beam_size, chunk_frames=7, clock="wall", num_threads=1)


def test_the_virtual_clock(latency: ModuleType) -> None:
    assert latency.finish([(1.0, 0.2), (2.0, 0.2), (2.5, 0.3)]) == pytest.approx(2.8), "in time: the last chunk's work"
    assert latency.finish([(1.0, 1.5), (2.0, 0.5), (2.5, 0.5)]) == pytest.approx(3.5), "late: the work before, too"


@pytest.mark.parametrize("runtime", ["float", "exact"])
@pytest.mark.parametrize("beam_size", [1, 3])
@torch.no_grad()
def test_words_are_those_of_the_whole_utterance(
    latency: ModuleType, packed: Path, beam_size: int, runtime: str
) -> None:
    features = torch.randn(61, 20)
    found = load_packed_model(packed).model
    output = found.encoder(features[None], torch.tensor([61]))
    [best] = modified_beam_search(found, *output, beam_size=3) if beam_size > 1 else [greedy_search(found, *output)]
    recogniser = latency.recogniser_of(packed, runtime, arguments(beam_size))
    work, words = recogniser.recognise(latency.Utterance(features, 0.61, 1.0, None))
    assert words == recogniser.tokenizer.decode(best[0].labels).split() != []
    arrivals, seconds = zip(*work, strict=True)
    assert arrivals[:2] == pytest.approx((0.0775, 0.1475)) and arrivals[-1] == 0.61 and len(work) == 9
    assert sum(seconds) > 1.0 and min(seconds[:-1]) > 7 / 61, "every chunk pays its share of the features"


@torch.no_grad()
def test_runtimes_compute_the_same(latency: ModuleType, packed: Path) -> None:
    features = torch.randn(1, 61, 20)
    plain, unpacking, int8 = (
        latency.Recogniser(packed, runtime, arguments()).model for runtime in ("float", "packed", "int8")
    )
    expected, _ = plain.encoder.stream(features)
    assert torch.equal(unpacking.encoder.stream(features)[0], expected)
    assert sum(p.numel() for p in unpacking.parameters()) < sum(p.numel() for p in plain.parameters()) / 4
    found, _ = int8.encoder.stream(features)
    assert 0 < (found - expected).norm() / expected.norm() < 0.1
    logits = [model.joiner(expected, expected) for model in (plain, unpacking, int8)]
    assert torch.equal(logits[0], logits[1]) and 0 < (logits[0] - logits[2]).norm() / logits[0].norm() < 0.1


def test_a_run_prints_its_table(
    latency: ModuleType,
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soundfile.write(str(tmp_path / "a.wav"), 0.1 * np.random.default_rng(0).normal(size=12000), 16000)
    flags = ["--packed", str(packed), "--wav", str(tmp_path / "a.wav"), "--rounds", "1", "--runtimes", "float"]
    monkeypatch.setattr(sys, "argv", [str(FILE), *flags])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    latency.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["file", "runtime"] and lines[1].split()[:2] == ["gq", "float"]
    size, _, running, rtf, *delays = map(float, lines[1].split()[2:9])
    assert size == pytest.approx(packed.stat().st_size / 1e6, abs=0.1) and abs(running) < 50
    assert 0 < rtf < 10 and min(delays) > 0


def test_a_comparison(latency: ModuleType, packed: Path) -> None:
    first = latency.Row(packed, "float", np.array([9.0, 4.0]), [[1.0, 2.0, 9.0], [2.0]])
    other = latency.Row(packed, "float", np.array([9.0, 3.0]), [[1.0]])
    assert other.against(first) == "float: gq against gq: file +0.0%, memory -25.0%, P50 -50.0%"
    assert first.percentiles[0] == 2000


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--wav", "a", "--cuts", "b"], "give --wav or --cuts"),
        (["--wav", "a"], "give one of --packed, --precision"),
        (["--wav", "a", "--untrained", "lstm-tiny", "--chunk-frames", "0"], "--chunk-frames.* at least 1"),
        (["--wav", "a", "--untrained", "tiny"], "cannot stream"),
        (["--wav", "a", "--untrained", "x", "--clock", "processor", "--num-threads", "2"], "--clock processor counts"),
    ],
)
def test_flags_that_make_no_sense(
    latency: ModuleType, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.setattr(sys, "argv", [str(FILE), *flags])
    with pytest.raises(UserError, match=words):
        latency.main()


def test_a_model_that_cannot_stream(latency: ModuleType, tmp_path: Path) -> None:
    config = CtcConfig(LstmConfig(num_features=20, d_model=8, num_layers=1), 5)
    model, _ = build_model(config, QuantConfig.preset("float"))
    loaded = LoadedModel(model.eval(), config, None, latency.NoTokens(), FEATURES.to_dict())
    pack_model(loaded, tmp_path / "ctc.safetensors")
    with pytest.raises(UserError, match="ctc.safetensors holds no LSTM transducer"):
        latency.Recogniser(tmp_path / "ctc.safetensors", "float", arguments())
