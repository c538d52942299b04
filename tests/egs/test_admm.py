"""ADMM by the scripts, in training and on a float model: what decode.py and export.py read lies on tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowbit_k2.asr.model_io import CheckpointChoice, load_trained, parse_allocation
from lowbit_k2.quant import Allocation, export_tensors, use_precision
from lowbit_k2.quant.switching import latent_weights
from lowbit_k2.recipe.admm import get_parser
from lowbit_k2.train.checkpoint import load_checkpoint, save_checkpoint
from tests.egs.scripts import AN4, Flag, call, refused

ADMM = "lowbit_k2.recipe.admm"
FEW = ["--max-duration", 10, "--num-batches", 2, "--outer", 3]


@pytest.fixture(scope="module")
def float_exp(an4_training: list[Flag], tmp_path_factory: pytest.TempPathFactory) -> Path:
    exp = tmp_path_factory.mktemp("float") / "exp"
    call(AN4 / "train.py", *an4_training[:-1], "32", "--exp-dir", exp, "--num-epochs", 1).good()
    return exp


def where(an4_data: Path) -> list[Flag]:
    return ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_char", "--quiet"]


def cuts(an4_data: Path) -> list[Flag]:
    return ["--cuts", an4_data / "fbank/an4_cuts_train.jsonl.gz"]


def assert_hard(choice: CheckpointChoice, precision: str) -> dict[str, int]:
    """Weights are what the packed codes stand for; {tensor: its bits}, of 1 to 8."""
    loaded, _ = load_trained(choice)
    with use_precision(loaded.model, parse_allocation(precision, loaded)):
        exported = {tensor.name: tensor for tensor in export_tensors(loaded.model)}
        bits = {q.name: q.active_bits for q in latent_weights(loaded.model) if q.active_bits <= 8}
        for quantizer, weight in latent_weights(loaded.model).items():
            if quantizer.name in bits:
                assert torch.equal(exported[quantizer.name].dequantize(), weight), quantizer.name
    assert bits
    return bits


def assert_decodes(flags: list[Flag], precision: str, an4_data: Path, folder: Path) -> None:
    flags = [*flags, "--precision", precision]
    assert "%WER" in call(AN4 / "decode.py", *flags, *where(an4_data)).good().out
    packed = folder / "packed.safetensors"
    call(AN4 / "export.py", *flags, "--output", packed).good()
    assert "%WER" in call(AN4 / "decode.py", "--packed", packed, *where(an4_data)).good().out


def test_in_training(an4_training: list[Flag], an4_data: Path, tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    command = [AN4 / "train.py", *an4_training[:-1], "2", "--admm-every", 2, "--admm-gamma", 0.1, "--exp-dir", exp]
    err = call(*command, "--num-epochs", 2, "--log-interval", 1).good().err
    assert "admm_residual=" in err
    assert set(assert_hard(CheckpointChoice(exp), "2").values()) == {2, 4, 8}
    assert load_checkpoint(exp / "epoch-2.pt").admm and load_checkpoint(exp / "epoch-2.pt").meta["settings"]["admm"]
    assert_decodes(["--exp-dir", exp], "2", an4_data, tmp_path)
    assert any((exp / "tensorboard").iterdir())
    # and on, from the middle
    (exp / "epoch-2.pt").unlink()
    call(*command, "--num-epochs", 2, "--resume", "true").good()
    assert_hard(CheckpointChoice(exp), "2")


@pytest.mark.parametrize(("precision", "granularity"), [("1", "tensor"), ("2", "channel"), ("4", "channel")])
def test_on_a_float_model(precision: str, granularity: str, float_exp: Path, an4_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "low.pt"
    flags = ["--exp-dir", float_exp, "--precision", precision, "--granularity", granularity, "--output", output]
    out = call(ADMM, *flags, *cuts(an4_data), *FEW).good().out
    assert "residual" in out and f"{output}: at {precision} bits" in out
    bits = assert_hard(CheckpointChoice(tmp_path, checkpoint=output), precision)
    assert set(bits.values()) == {int(precision)} and "ctc_head.weight" in bits
    assert_decodes(["--checkpoint", output, "--exp-dir", tmp_path], precision, an4_data, tmp_path)


def test_at_an_allocation(float_exp: Path, an4_data: Path, tmp_path: Path) -> None:
    Allocation({"": 2, "ctc_head": 8, "encoder.layers.0": 1}).save(tmp_path / "mine.json")
    output = tmp_path / "low.pt"
    flags = ["--exp-dir", float_exp, "--precision", tmp_path / "mine.json", "--output", output]
    fast = ["--gamma", 10, "--eta2", 0.02, "--outer", 30]
    out = call(ADMM, *flags, *cuts(an4_data), *FEW[:-2], *fast).good().out
    residuals = [
        float(line.split()[-1]) for line in out.splitlines() if len(line.split()) == 3 and line.split()[0].isdigit()
    ]
    assert len(residuals) == 30 and residuals[-1] < 0.1 * residuals[0] and "have not come" not in out
    (tmp_path / "mine.json").unlink()
    bits = assert_hard(CheckpointChoice(tmp_path, checkpoint=output), "mine")
    assert bits["ctc_head.weight"] == 8 and set(bits.values()) == {1, 2, 8}
    assert_decodes(["--checkpoint", output, "--exp-dir", tmp_path], "mine", an4_data, tmp_path)
    line = call(AN4 / "decode.py", "--checkpoint", output, "--precision", 8, *where(an4_data)).error()
    assert "never trained at 8 bits, only at mine" in line


def test_one_precision_per_layer(float_exp: Path, an4_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "low.pt"
    flags = ["--exp-dir", float_exp, "--precision", "1.5", "--quant-config", "lossless16", "--output", output]
    assert "have not come to their tables" in call(ADMM, *flags, *cuts(an4_data), *FEW).good().out
    bits = assert_hard(CheckpointChoice(tmp_path, checkpoint=output), "1.5")
    assert bits["encoder.layers.0.ff1.w1.weight"] == 1 and bits["encoder.layers.1.ff1.w1.weight"] == 2
    assert bits["ctc_head.weight"] == 8


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--gamma 0", "--gamma must be positive, it is 0.0"),
        ("--gamma nan", "--gamma must be a finite number, not nan"),
        ("--outer 0", "--outer must be at least 1"),
        ("--eta2 -1", "--eta2 must be positive"),
        ("--num-batches 0", "--num-batches must be at least 1"),
        ("--max-duration 0", "--max-duration must be positive"),
        ("--precision 32", "--precision 32: ADMM has tables of 1 to 8 bits"),
        ("--precision 9", "--precision '9': give one of 1, 2, 3"),
        ("--precision TMP/no.json", "--precision TMP/no.json cannot be read"),
        ("--output TMP/low.txt", "--output TMP/low.txt: give a name that ends in .pt"),
        ("--output EXP/epoch-1.pt", "EXP/epoch-1.pt is a checkpoint, which would be lost"),
        ("--cuts TMP/no.jsonl.gz", "TMP/no.jsonl.gz"),
        ("--exp-dir TMP/no", "/no does not exist: give the folder that train.py wrote"),
        ("--granularity block64", "invalid choice: 'block64'"),
    ],
)
def test_what_cannot_be(flags: str, words: str, float_exp: Path, an4_data: Path, tmp_path: Path) -> None:
    name, value = flags.replace("EXP", str(float_exp)).split()
    given = {"--exp-dir": float_exp, "--precision": 2, "--output": tmp_path / "low.pt"}
    given |= {"--cuts": cuts(an4_data)[1], name: value}
    status = 2 if "invalid choice" in words else 1  # argparse's own
    line = refused(tmp_path, ADMM, *(flag for pair in given.items() for flag in pair), status=status)
    assert words.replace("TMP", str(tmp_path)).replace("EXP", str(float_exp)) in line


def test_checkpoints_that_cannot_be(an4_exp: Path, float_exp: Path, an4_data: Path, tmp_path: Path) -> None:
    flags = [*cuts(an4_data), "--output", tmp_path / "low.pt"]
    line = refused(tmp_path, ADMM, "--exp-dir", an4_exp, "--precision", 2, *flags)
    assert "give one that was trained with --precisions 32" in line
    Allocation({"decoder.layers": 2}).save(tmp_path / "other.json")
    line = refused(tmp_path, ADMM, "--exp-dir", float_exp, "--precision", tmp_path / "other.json", *flags)
    assert "no quantized tensor has a name that starts with 'decoder.layers'" in line
    assert "--cuts is needed" in refused(tmp_path, ADMM, "--exp-dir", float_exp, *flags[2:])
    assert "--output is needed" in refused(tmp_path, ADMM, "--exp-dir", float_exp, *flags[:2])
    damaged = load_checkpoint(float_exp / "epoch-1.pt")
    damaged.model["ctc_head.weight"][0, 0] = float("nan")
    save_checkpoint(tmp_path / "nan.pt", damaged)
    line = refused(tmp_path, ADMM, "--checkpoint", tmp_path / "nan.pt", "--precision", 2, *flags)
    assert f"{tmp_path / 'nan.pt'}: ctc_head.weight holds numbers that are not finite" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--precisions 2,1,sp --admm-every 2", "--precisions 2,1,sp: ADMM draws weights to one precision"),
        ("--precisions 32 --admm-every 2", "--precisions 32: ADMM has tables of 1 to 8 bits"),
        ("--precisions 2 --admm-every -1", "--admm-every must not be negative"),
        ("--precisions 2 --admm-every 2 --admm-gamma 0", "--admm-gamma must be positive"),
        ("--precisions 2 --admm-every 2 --admm-inner 0", "--admm-inner must be at least 1"),
        ("--precisions 2 --admm-every 2 --quant-config float", "--quant-config float has no tensors"),
    ],
)
def test_trainings_that_cannot_be(flags: str, words: str, an4_training: list[Flag], tmp_path: Path) -> None:
    line = refused(tmp_path, AN4 / "train.py", *an4_training[:-2], "--exp-dir", "TMP/exp", *flags.split())
    assert words in line


def test_the_defaults_are_the_papers() -> None:
    args = get_parser().parse_args(["--precision", "2", "--cuts", "cuts", "--output", "low.pt"])
    assert (args.gamma, args.outer, args.inner, args.eta1, args.eta2) == (1e-3, 20, 20, 0.02, 0.001)
