"""The General Quantizer and S8BQAT by the scripts: trained, decoded, exported, and flags that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowbit_k2.asr.model_io import CheckpointChoice, load_trained, parse_allocation
from lowbit_k2.packed import read_packed
from lowbit_k2.quant import export_tensors, use_precision
from lowbit_k2.quant.switching import latent_weights
from tests.egs.scripts import AN4, Flag, call

SCHEMES = {
    "gq": "--quantizer gq --gq-every 2 --gq-scale power-of-two",
    "s8b": "--quantizer codebook --snap-every 2 --cosine-lambda 5e-4",
}


def where(an4_data: Path) -> list[Flag]:
    return ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_char", "--quiet"]


def low_bits(choice: CheckpointChoice) -> tuple[bool, set[str]]:
    """Whether all latents lie on their tables, and the encodings; codes stand for what the model computes with."""
    loaded, _ = load_trained(choice)
    hard = True
    with use_precision(loaded.model, parse_allocation("5", loaded)):
        exported = {tensor.name: tensor for tensor in export_tensors(loaded.model)}
        for quantizer, weight in latent_weights(loaded.model).items():
            if quantizer.active_bits <= 8:
                assert torch.equal(exported[quantizer.name].dequantize(), quantizer(weight)), quantizer.name
                hard &= torch.equal(quantizer(weight), weight)
    return hard, {f"{t.bits} {t.table is not None}" for t in exported.values() if t.codes is not None}


@pytest.mark.parametrize("name", SCHEMES)
def test_in_training(name: str, an4_training: list[Flag], an4_data: Path, tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    command = [AN4 / "train.py", *an4_training[:-1], "5", *SCHEMES[name].split(), "--exp-dir", exp, "--num-epochs", 2]
    err = call(*command, "--log-interval", 1).good().err
    assert ("gq_moved=" in err and "gq_alpha=" in err) if name == "gq" else "cosine=" in err
    assert low_bits(CheckpointChoice(exp)) == (True, {"4 True", "5 True", "8 True"})
    assert not low_bits(CheckpointChoice(exp, iter=3))[0]  # hardened when it is read
    flags = ["--exp-dir", exp, "--precision", 5]
    for middle in ([], ["--iter", 3]):
        assert "%WER" in call(AN4 / "decode.py", *flags, *middle, *where(an4_data)).good().out
    for compress in ("false", "true"):
        packed = tmp_path / f"{compress}.safetensors"
        call(AN4 / "export.py", *flags, "--output", packed, "--compress", compress).good()
        assert {t.encoding for t in read_packed(packed).tensors if not t.is_float} == {"index4", "index5", "index8"}
        assert "%WER" in call(AN4 / "decode.py", "--packed", packed, *where(an4_data)).good().out
    out = call("lowbit_k2.cli", "inspect", packed).good().out
    assert "entropy" in out and "index5" in out
    # and on, from the middle
    (exp / "epoch-2.pt").unlink()
    line = call(*command[:-1], 3, "--resume", "true")
    assert "another schedule" in line.error() if name == "gq" else line.status == 0
    call(*command, "--resume", "true").good()
    assert low_bits(CheckpointChoice(exp, epoch=2))[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--quantizer gq --gq-every 9999", "--gq-every 9999 is more than the "),
        ("--quantizer gq --gq-alpha-start 50 --gq-alpha-end 40", "--gq-alpha-end 40 lies below --gq-alpha-start 50"),
        ("--quantizer gq --gq-alpha-start 0", "--gq-alpha-start must be positive"),
        ("--quantizer gq --precisions 9", "--precisions 9"),
        ("--quantizer gq --precisions 0", "--precisions 0"),
        ("--quantizer gq --granularity channel", "granularity of gq 'channel' is unknown: choose one of tensor"),
        ("--quantizer gq --admm-every 2", "--quantizer gq: ADMM needs an even grid: take linear"),
        ("--quantizer gq --cosine-lambda 1", "--cosine-lambda does not go with quantizer gq"),
        ("--quantizer codebook --snap-every 9999", "--snap-every 9999 leaves nothing of the "),
        ("--snap-every 2", "--snap-every needs tables, which quantizer linear has not: take codebook"),
        ("--cosine-lambda 1 --cosine-start 9999", "--cosine-start 9999 leaves nothing of the "),
        ("--cosine-lambda 1 --precisions 4,2", "--precisions 4,2: a cosine draws weights to one precision"),
        ("--cosine-lambda -1", "--cosine-lambda must not be negative"),
        ("--cosine-lambda 1 --admm-every 2", "--cosine-lambda and ADMM exclude each other"),
    ],
)
def test_trainings_that_cannot_be(flags: str, words: str, an4_training: list[Flag], tmp_path: Path) -> None:
    given = [*an4_training[:-1], "2", "--num-epochs", 1, *flags.split()]
    line = call(AN4 / "train.py", *given, "--exp-dir", tmp_path / "exp").error()
    assert words in line and "\n" not in line
