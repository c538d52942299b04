"""`--architecture FILE` on every recipe's train.py, after a search on AN4."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowbit_k2.asr.model_io import CheckpointChoice, load_trained
from lowbit_k2.search.architecture import Architecture
from tests.egs.scripts import AN4, LIBRISPEECH, ROOT, Flag, call, refused

SEARCH = "lowbit_k2.recipe.search"
RECIPES = [AN4, LIBRISPEECH, ROOT / "egs/switchboard"]
SIZES = "--d-model=16 --num-layers=2 --num-heads=2 --subsampling-channels=4 --conv-kernel=5"


def conformer(tmp_path: Path, *widths: int) -> Path:
    path = tmp_path / "found.json"
    Architecture("conformer", {"ffn_dim": widths}).save(path)
    return path


def test_from_a_search_to_words_and_a_packed_file(an4_training: list[Flag], an4_data: Path, tmp_path: Path) -> None:
    flags = [flag for flag in an4_training[:-2] if not str(flag).startswith("--ffn-dim")]
    wanted = ["--candidates", "8,32", "--logits-share", 0.2, "--logits-epochs", 1, "--eta", 1, "--tensorboard", "false"]
    exp = tmp_path / "search"
    err = call(SEARCH, *flags, *wanted, "--corpus", "an4", "--exp-dir", exp, "--num-epochs", 1).good().err
    assert "entropy=" in err and "p(32)" in err
    path = exp / "logits/architecture.json"
    found = json.loads(path.read_text())
    found["fields"]["ffn_dim"] = [8, 32]  # the widths differ
    path.write_text(json.dumps(found))
    trained = tmp_path / "exp"
    command = [AN4 / "train.py", *flags, "--architecture", path, "--exp-dir", trained, "--precisions", "4"]
    call(*command, "--num-epochs", 1).good()
    loaded, _ = load_trained(CheckpointChoice(trained))
    assert loaded.model_config.encoder.ffn_dim == (8, 32)
    assert loaded.model.encoder.layers[1].ff2.w1.weight.shape == (32, 16)
    packed, where = tmp_path / "packed", ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_char"]
    call(AN4 / "export.py", "--exp-dir", trained, "--precision", 4, "--output", packed).good()
    assert "%WER" in call(AN4 / "decode.py", "--packed", packed, *where, "--quiet").good().out


def test_bottlenecks_by_lfmmi(an4_data: Path, tmp_path: Path) -> None:
    where = ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_phone", "--num-threads", 1]
    model = "--objective lfmmi --model tdnnf-tiny --num-layers 4 --hidden-dim 64 --d-model 32 --candidates 4,16,48"
    loop = "--num-epochs 1 --logits-epochs 1 --logits-share 0.2 --max-duration 20 --num-buckets 4 --log-interval 1"
    flags = [*where, *model.split(), *loop.split(), "--corpus", "an4", "--exp-dir", tmp_path, "--tensorboard", "false"]
    err = call(SEARCH, *flags).good().err
    assert "orthogonality=" in err and "denominator_32=" in err and "penalty_32=" in err
    assert len(Architecture.load(tmp_path / "logits/architecture.json").fields["bottlenecks"]) == 4


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_recipe_takes_one(recipe: Path, tmp_path: Path) -> None:
    command = [recipe / "train.py", "--dry-run", "--lang-dir", tmp_path / "none", *SIZES.split(), "--model", "tiny"]
    path = conformer(tmp_path, 8, 40)
    sizes = [call(*command, *more).good().out.split()[4] for more in (["--architecture", path], ["--ffn-dim", "8,40"])]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("widths", "flags", "words"),
    [
        ((8, 40), "--ffn-dim 8,41", "--ffn-dim contradicts --architecture TMP/found.json: leave one of them out"),
        ((8, 40), "--ffn-dim 8", "--ffn-dim contradicts --architecture TMP/found.json"),
        ((8, 40, 8), "", "--architecture TMP/found.json has ffn_dim of 3 layers, the model has 2"),
        ((8, 40), "--model tdnnf-tiny", "--architecture TMP/found.json is of a conformer, the model is a tdnnf"),
        ((8, 0), "", "--architecture TMP/found.json does not fit the model: ffn_dim 8,0"),
        ((), "--architecture TMP/none.json", "TMP/none.json does not exist"),
        ((), "--architecture TMP/text.json", "TMP/text.json cannot be read as JSON"),
    ],
)
def test_files_that_do_not_fit(widths: tuple[int, ...], flags: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("no JSON")
    given = ["--architecture", conformer(tmp_path, *widths)] if widths else []
    sizes = [] if "tdnnf" in flags else SIZES.split()
    line = refused(tmp_path, AN4 / "train.py", "--dry-run", *sizes, *given, *flags.split())
    assert words.replace("TMP", str(tmp_path)) in line


def test_the_same_widths_twice_are_no_contradiction(tmp_path: Path) -> None:
    flags = ["--architecture", conformer(tmp_path, 8, 8), "--ffn-dim", 8, "--lang-dir", tmp_path / "none"]
    call(AN4 / "train.py", "--dry-run", *SIZES.split(), *flags).good()
