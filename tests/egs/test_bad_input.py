"""What users get wrong: one line that names the thing and the remedy, a status other than 0, nothing left behind."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from lowbit_k2.data.manifests import cuts_path
from lowbit_k2.k2_compat import has_k2
from lowbit_k2.train.checkpoint import load_checkpoint
from tests.egs.scripts import AN4, LIBRISPEECH, Flag, call, files_of, refused, spawn

TRAIN, DECODE, EXPORT = (AN4 / name for name in ("train.py", "decode.py", "export.py"))


@pytest.fixture
def exp(an4_exp: Path, tmp_path: Path) -> Path:
    """A trained model that a test may damage."""
    return Path(shutil.copytree(an4_exp, tmp_path / "exp"))


@pytest.fixture
def packed(talkative_exp: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    call(EXPORT, "--exp-dir", talkative_exp, "--precision", 1, "--output", path).good()
    return path


def decode_flags(data: Path, exp: Path) -> list[Flag]:
    return ["--exp-dir", exp, "--manifest-dir", data / "fbank", "--lang-dir", data / "lang_char", "--quiet"]


# --- train.py -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--manifest-dir TMP/nowhere", "TMP/nowhere/an4_cuts_train.jsonl.gz does not exist: run prepare.sh"),
        ("--lang-dir TMP/nowhere", "TMP/nowhere holds neither bpe.model nor lexicon.txt: run train_bpe"),
        ("--exp-dir TMP/file", "--exp-dir TMP/file is a file: give a folder"),
        ("--exp-dir TMP/file/new", "TMP/file/new: Not a directory: choose another path"),
        ("--start-epoch 7", "epoch-6.pt does not exist"),
        ("--start-batch 7", "checkpoint-7.pt does not exist"),
        ("--precisions 9", "--precisions 9: bits (9,): give one or more different precisions out of 1, 2"),
        ("--precisions 2,low", "--precisions 2,low: 'low' is neither a number of bits nor 'sp'"),
        ("--precisions sp", "--precisions needs at least one number of bits"),
        ("--precisions 2 --students 1", "--students must be less than the 1 branches 2"),
        ("--teacher TMP/nowhere.pt", "TMP/nowhere.pt does not exist"),
        ("--teacher 4", "--teacher 4 is not among the precisions 2,1,sp"),
        ("--quant-config float", "use 32"),
        ("--use-fp16 true --use-bf16 true", "exclude each other"),
        ("--num-epochs 0", "--num-epochs must be at least 1"),
        ("--seed -1", "--seed must not be negative"),
        ("--lr-factor nan", "--lr-factor must be a finite number"),
        ("--weight-decay -1", "--weight-decay must not be negative"),
        ("--dropout 1", "--dropout must be at most 0.9"),
        ("--d-model 18", "must be a multiple of 2 x --num-heads"),
        ("--conv-kernel -3", "--conv-kernel must be at least 1"),
        ("--conv-norm group", "--conv-norm 'group' is unknown: choose one of batch, layer"),
        ("--max-duration 0", "--max-duration must be positive"),
        ("--cache-features true --num-workers 2", "--cache-features needs 0 --num-workers"),
        ("--enable-musan true --cache-features false", "prepare MUSAN first"),
    ],
)
def test_training_is_refused(an4_training: list[Flag], tmp_path: Path, flags: str, words: str) -> None:
    (tmp_path / "file").write_text("mine")
    line = refused(tmp_path, TRAIN, *an4_training, "--exp-dir", tmp_path / "new", *flags.split())
    assert words.replace("TMP", str(tmp_path)) in line


def test_fp16_without_a_gpu(an4_training: list[Flag], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    line = refused(tmp_path, TRAIN, *an4_training, "--exp-dir", tmp_path / "new", "--use-fp16", "true")
    assert "--use-fp16 needs a GPU: use --use-bf16" in line


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (TRAIN, "--no-such-flag 1"),
        (TRAIN, "--model huge"),
        (TRAIN, "--resume maybe"),
        (TRAIN, "--num-epochs many"),
        (TRAIN, "--num-epoch 1"),  # no abbreviations
        (TRAIN, "--feature-normalize loud"),
        (DECODE, "--avg few"),
        (DECODE, "--packed"),
        (EXPORT, ""),  # --precision is required
        (EXPORT, "--precision 1 --recalibrate-bn some"),
        (LIBRISPEECH / "train.py", "--mini maybe"),
        (LIBRISPEECH / "decode.py", "--mini true --beam 4"),
        (LIBRISPEECH / "export.py", "--mini true"),
        (LIBRISPEECH / "evaluate.py", "--mini true"),
        ("lowbit_k2.cli", "unpack FILE"),
        ("lowbit_k2.recipe.compute_fbank", "--corpus an4"),
    ],
)
def test_flags_that_do_not_exist(script: Path | str, flags: str, tmp_path: Path) -> None:
    refused(tmp_path, script, *flags.split(), status=2)


def test_another_run_is_there(an4_training: list[Flag], an4_data: Path, exp: Path, tmp_path: Path) -> None:
    flags = [*an4_training, "--exp-dir", exp, "--num-epochs", 3]
    line = refused(tmp_path, TRAIN, *flags)
    assert f"--exp-dir {exp} holds epoch-2.pt already: set resume, or choose another" in line
    for more, what in (
        (["--d-model", 32], "another model configuration"),
        (["--precisions", "2,1"], "another co_training configuration"),
        (["--precisions", 1], "another quant configuration"),
        (["--quant-config", "paper"], "another quant configuration"),
        (["--lang-dir", an4_data / "lang_bpe_60"], "another model configuration"),
        (["--bpe-model", an4_data / "lang_bpe_60/bpe.model"], "another model configuration"),
        (["--feature-normalize", "none"], "another features configuration"),
    ):
        assert what in refused(tmp_path, TRAIN, *flags, "--resume", "true", *more)
    (exp / "epoch-2.pt").write_bytes(b"")  # as a machine that lost its power leaves it
    done = call(TRAIN, *flags, "--resume", "true").good()
    assert "epoch-2.pt is damaged, or no archive" in done.err and "the one before is looked at" in done.err
    assert "epoch 2, " in done.err and "epoch 3, " in done.err and load_checkpoint(exp / "epoch-2.pt")
    for path in exp.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-1000])
    assert ".pt is damaged, or no archive" in call(TRAIN, *flags, "--resume", "true").error()


Change = Callable[[list[dict]], list[dict]]


@pytest.fixture
def change_cuts(an4_data: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Makes a manifest folder whose training cuts are changed."""

    def change(how: Change) -> Path:
        folder = tmp_path / "fbank"
        folder.mkdir()
        for name in ("an4_cuts_dev.jsonl.gz", "features.json"):
            shutil.copy(an4_data / "fbank" / name, folder)
        with gzip.open(cuts_path(an4_data / "fbank", "an4", "train"), "rt") as file:
            cuts = [json.loads(line) for line in file]
        with gzip.open(cuts_path(folder, "an4", "train"), "wt") as file:
            file.writelines(json.dumps(cut) + "\n" for cut in how(cuts))
        return folder

    return change


def without_text(cuts: list[dict]) -> list[dict]:
    for cut in cuts[:4]:
        cut["supervisions"][0]["text"] = ""
    return cuts


def without_features(cuts: list[dict]) -> list[dict]:
    for cut in cuts:
        cut["features"]["storage_path"] = "/nowhere/feats.lca"
    return cuts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cuts: [], "an4_cuts_train.jsonl.gz holds no cuts"),
        (without_text, "too many cuts of the training set cannot be used: 68 of 72 cuts kept, dropped: 4 empty-text"),
        (without_features, "the features of cut"),
        (lambda cuts: [{"id": "x"}], "an4_cuts_train.jsonl.gz cannot be read as cuts"),
    ],
)
def test_unusable_training_data(
    an4_training: list[Flag], change_cuts: Callable[[Change], Path], tmp_path: Path, change: Change, words: str
) -> None:
    flags = [*an4_training, "--manifest-dir", change_cuts(change), "--exp-dir", tmp_path / "new"]
    assert words in refused(tmp_path, TRAIN, *flags)


def test_a_truncated_manifest(an4_training: list[Flag], change_cuts: Callable[[Change], Path], tmp_path: Path) -> None:
    path = cuts_path(change_cuts(lambda cuts: cuts), "an4", "train")
    path.write_bytes(path.read_bytes()[:-200])
    line = refused(tmp_path, TRAIN, *an4_training, "--manifest-dir", path.parent, "--exp-dir", tmp_path / "new")
    assert f"{path} cannot be read as cuts" in line and "make it again" in line


def test_unreadable_audio_is_found_while_training(
    an4_training: list[Flag], change_cuts: Callable[[Change], Path], tmp_path: Path
) -> None:
    """On-the-fly features are read in the epoch; what was written until then stays whole."""
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"RIFF, but no audio")

    def change(cuts: list[dict]) -> list[dict]:
        for cut in cuts:
            cut["recording"]["sources"][0]["source"] = str(noise)
        return cuts

    flags = [*an4_training, "--manifest-dir", change_cuts(change), "--exp-dir", tmp_path / "new"]
    run = call(TRAIN, *flags, "--on-the-fly-feats", "true")
    assert "the audio of cut" in run.error()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"log"}


# --- decode.py ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--exp-dir TMP/nowhere", "--exp-dir TMP/nowhere does not exist"),
        ("--epoch 9", "epoch-9.pt does not exist"),
        ("--iter 1000", "checkpoint-1000.pt does not exist"),
        ("--avg 3", "--avg 3 is impossible"),
        ("--precision 4", "--precision 4: the model was never trained at 4 bits, only at 2, 1"),
        ("--precision 32", "--precision 32: the model was never trained at 32 bits"),
        ("--precision half", "precision 'half': give one of"),
        ("--precision 1,2,1", "names 3 layers, the model has 2"),
        ("--decoding-method beam", "--decoding-method 'beam' is unknown: choose of"),
        ("--test-sets nobody", "an4_cuts_nobody.jsonl.gz does not exist"),
        ("--manifest-dir TMP/nowhere", "TMP/nowhere/an4_cuts_test.jsonl.gz does not exist"),
        ("--max-duration -1", "--max-duration must be positive"),
        ("--search-beam 0", "--search-beam"),
        ("--packed TMP/nothing", "TMP/nothing"),
        ("--wav TMP/nothing.wav", "TMP/nothing.wav does not exist"),
        ("--wav TMP/text.wav", "TMP/text.wav cannot be read as audio"),
        ("--wav TMP/empty.wav", "TMP/empty.wav holds no audio samples"),
        ("--wav TMP/text.wav --precision 1 2", "transcribed at one precision"),
    ],
)
def test_decoding_is_refused(an4_data: Path, exp: Path, tmp_path: Path, flags: str, words: str) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", torch.zeros(0).numpy(), 16000)
    line = refused(tmp_path, DECODE, *decode_flags(an4_data, exp), *flags.split())
    assert words.replace("TMP", str(tmp_path)) in line


def test_a_checkpoint_that_is_damaged_or_of_another_kind(an4_data: Path, exp: Path, tmp_path: Path) -> None:
    newest = exp / "epoch-2.pt"
    whole = newest.read_bytes()

    def decode(*more: Flag) -> str:
        return refused(tmp_path, DECODE, *decode_flags(an4_data, exp), *more)

    for damaged in (whole[: len(whole) // 2], b"", b"hello\n", b"\0" * 1000):
        newest.write_bytes(damaged)
        assert f"{newest} is damaged, or no archive of tensors" in decode()
    torch.save({"model": {"w": torch.ones(2)}}, newest)
    assert f"{newest} is no checkpoint of this version of lowbit_k2" in decode()

    newest.write_bytes(whole)
    content = torch.load(newest, weights_only=True)
    torch.save({key: value for key, value in content.items() if key != "model_avg"}, newest)
    assert f"{newest} is damaged (KeyError: 'model_avg')" in decode()
    for part in ("tokenizer", "model"):
        meta = json.loads(content["meta"])
        del meta[part]
        torch.save({**content, "meta": json.dumps(meta)}, newest)
        assert f"lacks '{part}': train again" in decode()


def test_checkpoints_of_different_models(an4_data: Path, an4_training: list[Flag], exp: Path, tmp_path: Path) -> None:
    """Two runs in one folder, as copying makes them; and a checkpoint whose configuration is another one's."""
    other = tmp_path / "other"
    call(TRAIN, *an4_training, "--ffn-dim", 16, "--exp-dir", other, "--num-epochs", 1).good()
    shutil.copy(other / "epoch-1.pt", exp / "epoch-1.pt")
    line = refused(tmp_path, DECODE, *decode_flags(an4_data, exp), "--avg", 2)
    assert "epoch-2.pt holds other tensors than" in line and "different models" in line

    contents = [torch.load(folder / "epoch-1.pt", weights_only=True) for folder in (other, exp)]
    mixed = {**contents[1], "meta": torch.load(exp / "epoch-2.pt", weights_only=True)["meta"]}
    torch.save(mixed, exp / "epoch-3.pt")
    assert "its configuration wants encoder.layers.0.ff1.w1.weight" in refused(
        tmp_path, DECODE, *decode_flags(an4_data, exp), "--epoch", 3
    )


@pytest.mark.k2
def test_graphs_that_are_missing_or_for_other_units(an4_data: Path, exp: Path, tmp_path: Path) -> None:
    flags = [*decode_flags(an4_data, exp), "--decoding-method", "1best"]
    assert "--lm-scale: 'x' cannot be read" in refused(tmp_path, DECODE, *flags, "--lm-scale", "x", status=2)
    lang = tmp_path / "lang"
    shutil.copytree(an4_data / "lang_char", lang)
    (lang / "HLG.pt").write_bytes(b"no graph")
    line = refused(tmp_path, DECODE, *flags, "--lang-dir", lang)
    assert f"{lang / 'HLG.pt'} cannot be read as a graph" in line and "compile_hlg" in line
    (lang / "HLG.pt").unlink()
    line = refused(tmp_path, DECODE, *flags, "--lang-dir", lang)
    assert f"{lang / 'HLG.pt'} does not exist: run prepare_lang and compile_hlg" in line
    line = refused(tmp_path, DECODE, *flags, "--lang-dir", an4_data / "lang_bpe_60")
    assert "HLG.pt was made for other symbols than the model's units has now" in line


def test_lattices_without_k2(an4_data: Path, exp: Path, tmp_path: Path) -> None:
    if has_k2():
        pytest.skip("k2 is installed")
    for method in ("ctc-decoding", "1best"):
        assert "k2" in refused(tmp_path, DECODE, *decode_flags(an4_data, exp), "--decoding-method", method)


# --- packed files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign", "empty", "folder"])
def test_a_damaged_packed_file(an4_data: Path, an4_corpus: Path, packed: Path, tmp_path: Path, damage: str) -> None:
    whole = packed.read_bytes()
    packed.unlink()
    if damage == "folder":
        packed.mkdir()
    else:
        middle = len(whole) // 2
        altered = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        packed.write_bytes({"truncated": whole[:-1], "altered": altered, "foreign": b"{}" * 99, "empty": b""}[damage])
    [audio, *_] = (an4_corpus / "wav").rglob("*.wav")
    for script, *flags in (
        (DECODE, *decode_flags(an4_data, tmp_path / "new"), "--packed", packed),
        ("lowbit_k2.cli", "inspect", packed),
        ("lowbit_k2.cli", "transcribe", "--packed", packed, audio),
    ):
        assert str(packed) in refused(tmp_path, script, *flags)


def test_a_packed_file_has_its_precision(an4_data: Path, packed: Path, tmp_path: Path) -> None:
    flags = [*decode_flags(an4_data, tmp_path / "new"), "--packed", packed, "--precision", 1]
    assert "--precision is fixed in a packed file" in refused(tmp_path, DECODE, *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--precision 4", "--precision 4: the model was never trained at 4 bits, only at 2, 1"),
        ("--precision 1 --epoch 9", "epoch-9.pt does not exist"),
        ("--precision 1 --exp-dir TMP/nowhere", "--exp-dir TMP/nowhere does not exist"),
        ("--precision 1 --output TMP/exp", "TMP/exp cannot be written"),
        ("--precision 1 --output TMP/file/model", "TMP/file/model cannot be written"),
        ("--precision 1 --recalibrate-bn -1", "--recalibrate-bn must not be negative"),
        ("--precision 1 --recalibrate-bn 1 --manifest-dir TMP/nowhere", "an4_cuts_train.jsonl.gz does not exist"),
    ],
)
def test_export_is_refused(exp: Path, tmp_path: Path, flags: str, words: str) -> None:
    (tmp_path / "file").write_text("mine")
    line = refused(tmp_path, EXPORT, "--exp-dir", exp, *flags.split())
    assert words.replace("TMP", str(tmp_path)) in line


# --- as a shell sees it ---------------------------------------------------------------------------------------


def test_a_process_prints_one_line(an4_data: Path, packed: Path, tmp_path: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:-1])
    before = files_of(tmp_path)
    for script, *flags in (
        (TRAIN, "--manifest-dir", tmp_path / "nowhere", "--exp-dir", tmp_path / "exp"),
        (DECODE, *decode_flags(an4_data, tmp_path / "exp"), "--packed", packed),
    ):
        run = spawn(sys.executable, script, *flags, cwd=tmp_path)
        assert run.error() == run.err.strip() and run.out == ""
    assert files_of(tmp_path) == before
