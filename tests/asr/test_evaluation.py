"""The table of a model's precisions: measured, and checked against the packed files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowbit_k2.asr import evaluation
from lowbit_k2.asr.evaluation import Evaluation, evaluate, format_table
from lowbit_k2.asr.model_io import CheckpointChoice, build_model, describe_tokenizer
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.errors import UserError
from lowbit_k2.models import ConformerConfig, CtcConfig
from lowbit_k2.quant import QuantConfig
from lowbit_k2.train.checkpoint import Checkpoint, save_checkpoint
from tests.recipe.corpus import FEATURES, Corpus, make_corpus

GREEDY = "ctc-greedy-search"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), number=6)


@pytest.fixture
def exp_dir(corpus: Corpus, tmp_path: Path) -> Path:
    """A checkpoint of an untrained 2-bit/1-bit model."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(corpus.lang_dir)
    encoder = ConformerConfig(
        num_features=20, d_model=16, num_layers=2, num_heads=2, ffn_dim=16, conv_kernel=3, subsampling_channels=4
    )
    config = CtcConfig(encoder, tokenizer.vocab_size)
    quant = QuantConfig.preset("lossless16", precisions=(2, 1))
    model, _ = build_model(config, quant)
    meta = {"model": config.to_dict(), "quant": quant.to_dict(), "tokenizer": describe_tokenizer(tokenizer)}
    meta |= {"features": FEATURES.to_dict(), "update": 1, "average_period": 1}
    save_checkpoint(tmp_path / "exp/epoch-4.pt", Checkpoint(model.state_dict(), meta))
    return tmp_path / "exp"


def run(exp_dir: Path, corpus: Corpus, *precisions: str) -> list[Evaluation]:
    config = DecodeConfig(CheckpointChoice(exp_dir), manifest_dir=corpus.manifest_dir, quiet=True)
    return evaluate(config, precisions, "test", lambda: corpus.cuts)


def test_every_precision_is_decoded_packed_and_decoded_again(exp_dir: Path, corpus: Corpus) -> None:
    found = run(exp_dir, corpus, "2", "1.5", "1", "2,1")
    assert [e.precision for e in found] == ["2", "1.5", "1", "2,1"]
    for e in found:
        name = e.precision.replace(",", "_")
        assert e.file_bytes == (exp_dir / f"packed/{name}bit.safetensors").stat().st_size
        assert e.ratio == e.float_bytes / e.file_bytes > 1
        assert e.stats(GREEDY).ref_words == 6 and e.test_set == "test"
        recogs = [
            (exp_dir / GREEDY / f"recogs-test-{model}.txt").read_text()
            for model in (f"epoch-4-avg-1-precision-{name}", f"packed-{name}bit")
        ]
        assert recogs[0] == recogs[1] == (exp_dir / e.recogs[GREEDY]).read_text()
        low, high = e.intervals[GREEDY]
        assert low <= e.stats(GREEDY).rate <= high
        assert Evaluation(**e.to_dict()) == e
    assert found[0].file_bytes > found[1].file_bytes > found[2].file_bytes
    assert not list((exp_dir / "packed").glob("*float*"))


def test_a_packed_file_with_other_words_is_refused(
    exp_dir: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = evaluation.run_decode

    def changed(args, load_test_sets):
        found = decode(args, load_test_sets)
        if args.packed is None:
            return found
        return {key: replace(d, results=[*d.results[:-1], (*d.results[-1][:2], ["BOO"])]) for key, d in found.items()}

    monkeypatch.setattr(evaluation, "run_decode", changed)
    with pytest.raises(UserError, match="1bit.safetensors gives other words.*'BOO' instead of"):
        run(exp_dir, corpus, "1")


def test_one_scale_of_the_language_model(exp_dir: Path, corpus: Corpus) -> None:
    with pytest.raises(UserError, match="lm_scale 0.4,0.6: give one, chosen on dev"):
        config = DecodeConfig(CheckpointChoice(exp_dir), lm_scale=(0.4, 0.6))
        evaluate(config, ["1"], "test", lambda: corpus.cuts)
    assert not list(exp_dir.glob("*/recogs-*"))


def test_the_table() -> None:
    errors = {
        GREEDY: {"ins": 1, "dels": 2, "sub": 3, "ref_words": 100},
        "1best": dict.fromkeys(("ins", "dels", "sub"), 0),
    }
    errors["1best"]["ref_words"] = 100
    intervals = {GREEDY: (0.0421, 0.0778)}
    table = format_table([Evaluation("1", "test", errors, intervals, file_bytes=250_000, float_bytes=4_100_000)])
    assert table.splitlines() == [
        "| bits | %WER ctc-greedy-search (ins/del/sub) | 95% | %WER 1best (ins/del/sub) | 95% | MB | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 1 | 6.00 (1/2/3) | 4.2-7.8 | 0.00 (0/0/0) |  | 0.250 | 16.4 |",
    ]
