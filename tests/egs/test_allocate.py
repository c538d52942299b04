"""Precisions per tensor from a float model to a packed file: measure, choose, train, decode, export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lowbit_k2.quant import Allocation
from lowbit_k2.train.checkpoint import load_checkpoint, save_checkpoint
from tests.egs.scripts import AN4, Flag, call, refused

ALLOCATE = "lowbit_k2.recipe.allocate"


@pytest.fixture(scope="module")
def float_exp(an4_training: list[Flag], tmp_path_factory: pytest.TempPathFactory) -> Path:
    exp = tmp_path_factory.mktemp("float") / "exp"
    call(AN4 / "train.py", *an4_training[:-1], "32", "--exp-dir", exp, "--num-epochs", 1).good()
    return exp


@pytest.fixture(scope="module")
def table(float_exp: Path, an4_data: Path) -> Path:
    cuts = an4_data / "fbank/an4_cuts_train.jsonl.gz"
    flags = ["--exp-dir", float_exp, "--measure", "kl", "--cuts", cuts, "--max-duration", 10]
    out = call(ALLOCATE, *flags, "--table", float_exp / "kl.json").good().out
    assert "groups at 8, 4, 2, 1 bits" in out and "all at 1" in out
    return float_exp / "kl.json"


@pytest.mark.parametrize("measure", ["sigmoid", "hessian", "nas"])
def test_other_measures(measure: str, float_exp: Path, an4_data: Path, tmp_path: Path) -> None:
    cuts = an4_data / "fbank/an4_cuts_train.jsonl.gz"
    flags = ["--exp-dir", float_exp, "--cuts", cuts, "--max-duration", 10, "--group-by", "layer", "--probes", 1]
    flags += ["--nas-updates", 5]
    call(ALLOCATE, *flags, "--measure", measure, "--bits", "8,1", "--table", tmp_path / "t.json").good()
    found = json.loads((tmp_path / "t.json").read_text())
    layers = ["ctc_head", "encoder", "encoder.layers.0", "encoder.layers.1"]
    assert found["measure"] == measure and sorted(found["loss"]) == layers
    assert all(own["1"] >= own["8"] >= 0 or measure == "nas" for own in found["loss"].values())


def test_from_a_table_to_words(
    table: Path, float_exp: Path, an4_training: list[Flag], an4_data: Path, tmp_path: Path
) -> None:
    chosen = tmp_path / "half.json"
    out = call(ALLOCATE, "--table", table, "--average-bits", 3, "--output", chosen, "--forbid", "ctc_head=1").good().out
    assert "chosen under" in out
    allocation = Allocation.load(chosen)
    assert len(set(allocation.bits.values())) > 1 and allocation.bits["ctc_head.weight"] > 1
    call(ALLOCATE, "--table", table, "--front", tmp_path / "front.json").good()
    points = json.loads((tmp_path / "front.json").read_text())["choices"]
    assert len(points) > 5 and [p["bytes"] for p in points] == sorted(p["bytes"] for p in points)

    exp = tmp_path / "exp"
    command = [AN4 / "train.py", *an4_training[:-1], f"{chosen},2", "--quant-config", "mixed", "--exp-dir", exp]
    err = call(*command, "--init-from", float_exp / "epoch-1.pt", "--num-epochs", 1).good().err
    assert "loss_half=" in err and "kl_half=" in err and "loss_2=" in err
    assert load_checkpoint(exp / "epoch-1.pt").meta["allocations"] == {"half": allocation.to_dict()}
    chosen.unlink()  # the checkpoint knows it
    where = ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_char", "--quiet"]
    out = call(AN4 / "decode.py", "--exp-dir", exp, "--precision", "half", 2, *where).good().out
    assert out.count("%WER") == 2 and "precision-half" in out
    line = call(AN4 / "decode.py", "--exp-dir", exp, "--precision", 1, *where).error()
    assert "never trained at 1 bits, only at 2, half" in line
    packed = tmp_path / "half.safetensors"
    out = call(AN4 / "export.py", "--exp-dir", exp, "--precision", "half", "--output", packed).good().out
    assert "half" in out
    assert "%WER" in call(AN4 / "decode.py", "--packed", packed, *where).good().out


def test_descent_by_the_loss_of_the_model(table: Path, float_exp: Path, an4_data: Path, tmp_path: Path) -> None:
    flags = ["--table", table, "--average-bits", 2, "--descend", 12, "--output", tmp_path / "two.json"]
    flags += ["--exp-dir", float_exp, "--cuts", an4_data / "fbank/an4_cuts_train.jsonl.gz", "--max-duration", 10]
    out = call(ALLOCATE, *flags).good().out
    sizes = {line.split("  ")[0]: int(line.replace(",", "").split()[-8]) for line in out.splitlines()[-6:]}
    assert sizes["after 12 trials"] <= sizes["all at 2"] and Allocation.load(tmp_path / "two.json").bits
    held_out = ["--descend-by", "kl", "--held-out", an4_data / "fbank/an4_cuts_dev.jsonl.gz"]
    lines = call(ALLOCATE, *flags, *held_out).good().out.splitlines()
    best = next(line for line in lines if line.startswith("best on an4_cuts_dev.jsonl.gz"))
    assert int(best.replace(",", "").split()[-8]) <= sizes["all at 2"]


def test_quantized_without_training(table: Path, float_exp: Path, an4_data: Path, tmp_path: Path) -> None:
    flags = ["--table", table, "--average-bits", 7, "--quantized", tmp_path / "seven.pt"]
    call(ALLOCATE, *flags, "--exp-dir", float_exp).good()
    where = ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_char", "--quiet"]
    checkpoint = ["--checkpoint", tmp_path / "seven.pt"]
    assert "precision-seven" in call(AN4 / "decode.py", *checkpoint, "--exp-dir", tmp_path / "out", *where).good().out
    packed = ["--precision", "seven", "--output", tmp_path / "packed"]
    call(AN4 / "export.py", *checkpoint, *packed, "--exp-dir", tmp_path / "out").good()
    other = Path(shutil.copytree(float_exp, tmp_path / "other"))
    changed = load_checkpoint(other / "epoch-1.pt")
    changed.model["ctc_head.weight"] += 1.0
    save_checkpoint(other / "epoch-1.pt", changed)
    line = call(ALLOCATE, *flags, "--exp-dir", other).error()
    assert f"{table} was measured on another model" in line


def test_trained_at_an_allocation_alone(table: Path, an4_training: list[Flag], an4_data: Path, tmp_path: Path) -> None:
    call(ALLOCATE, "--table", table, "--average-bits", 2, "--output", tmp_path / "two.json").good()
    command = [AN4 / "train.py", *an4_training[:-1], tmp_path / "two.json", "--quant-config", "mixed"]
    call(*command, "--exp-dir", tmp_path / "exp", "--num-epochs", 1).good()
    where = ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_char", "--quiet"]
    assert "precision-two" in call(AN4 / "decode.py", "--exp-dir", tmp_path / "exp", *where).good().out
    line = call(AN4 / "decode.py", "--exp-dir", tmp_path / "exp", "--precision", 8, *where).error()
    assert "never trained at 8 bits, only at two" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--table TMP/none.json", "TMP/none.json"),
        ("--table TABLE --output TMP/x.json", "--output needs a budget"),
        ("--table TABLE --bytes 100 --output TMP/x.txt", "--output TMP/x.txt: give a name that ends in .json"),
        ("--table TABLE --bytes 100 --output TMP/x.json", "100 bytes cannot be met: the smallest choice takes"),
        ("--table TABLE --ratio nan --output TMP/x.json", "--ratio must be positive, it is nan"),
        (
            "--table TABLE --bytes 99999 --output TMP/x.json --forbid *=1 --forbid *=2 --forbid *=4 --forbid *=8",
            "forbidden",
        ),
        ("--table TABLE --average-bits 9 --output TMP/x.json", "--average-bits 9: give a number from 1 to 8"),
        ("--table TMP/x.json --measure kl", "--measure needs --cuts"),
        ("--table TABLE --average-bits 2 --descend 5", "--descend needs --cuts"),
        ("--table TABLE --descend 5 --cuts TMP/no.jsonl.gz", "--descend needs a budget"),
        ("--table TABLE --held-out TMP/no.jsonl.gz", "--held-out needs a budget"),
        ("--table TABLE --average-bits 2 --held-out TMP/no.jsonl.gz --exp-dir EXP", "TMP/no.jsonl.gz"),
        ("--table TABLE --average-bits 2 --descend -5", "--descend from 0"),
        ("--table TMP/x.json --measure kl --cuts TMP/no.jsonl.gz --exp-dir EXP", "TMP/no.jsonl.gz"),
    ],
)
def test_what_cannot_be(flags: str, words: str, table: Path, float_exp: Path, tmp_path: Path) -> None:
    flags = flags.replace("TABLE", str(table)).replace("EXP", str(float_exp))
    assert words.replace("TMP", str(tmp_path)) in refused(tmp_path, ALLOCATE, *flags.split())


def test_a_low_bit_model_has_no_sensitivities(an4_exp: Path, an4_data: Path, tmp_path: Path) -> None:
    cuts = an4_data / "fbank/an4_cuts_train.jsonl.gz"
    line = refused(
        tmp_path, ALLOCATE, "--exp-dir", an4_exp, "--measure", "kl", "--cuts", cuts, "--table", tmp_path / "t.json"
    )
    assert "give one that was trained with --precisions 32" in line
