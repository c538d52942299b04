"""export.py: from checkpoints to packed files measured on disk, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowbit_k2.asr import exporting
from lowbit_k2.asr.model_io import CheckpointChoice, describe_tokenizer, load_packed, load_trained
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.features import FeatureConfig
from lowbit_k2.errors import UserError
from lowbit_k2.models import TransducerConfig, make_model
from lowbit_k2.packed import PackedFileError, read_packed
from lowbit_k2.quant import Allocation, QuantConfig, quantize_model, use_precision
from lowbit_k2.quant.walker import quant_config_of
from lowbit_k2.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.asr.running import export
from tests.export.toy import CONFIG, ENCODER, Toy, toy_batch, toy_model

FEATURES = FeatureConfig(num_mel_bins=23).to_dict()


def save(toy: Toy, path: Path) -> None:
    meta = {
        "model": toy.model_config.to_dict(),
        "quant": quant_config_of(toy.model).to_dict(),
        "tokenizer": describe_tokenizer(toy.tokenizer),
        "features": FEATURES,
    }
    save_checkpoint(path, Checkpoint(toy.model.state_dict(), meta))


@pytest.fixture()
def exp_dir(tmp_path: Path) -> Path:
    for epoch in (1, 2):
        save(toy_model(seed=epoch), tmp_path / f"exp/epoch-{epoch}.pt")
    return tmp_path / "exp"


def run_export(exp_dir: Path, load_train_cuts, *flags: str):
    return export(load_train_cuts, "--exp-dir", str(exp_dir), *flags)


def no_cuts():
    raise AssertionError("training cuts are for --recalibrate-bn only")


@pytest.mark.parametrize("precision", ["1", "2", "1.5", "2,2,1,1"])
@torch.no_grad()
def test_the_file_is_the_averaged_quantized_model(
    exp_dir: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = run_export(exp_dir, no_cuts, "--precision", precision, "--avg", "2")
    path = exp_dir / f"pretrained-{precision.replace(',', '_')}bit.safetensors"
    assert table.file.total == path.stat().st_size and table.ratio > 2
    assert f"{table.ratio:.2f}x" in capsys.readouterr().out

    loaded, packed = load_trained(CheckpointChoice(exp_dir, avg=2))[0], load_packed(path)
    bits = {"1": [1] * 4, "2": [2] * 4, "1.5": [1, 1, 2, 2], "2,2,1,1": [2, 2, 1, 1]}[precision]
    with use_precision(loaded.model, Allocation.by_layer("encoder.layers", bits)):
        expected, _ = loaded.model(*toy_batch())
    assert torch.equal(packed.model(*toy_batch())[0], expected)
    assert packed.quant_config is None and packed.features == FEATURES and packed.model_config == CONFIG
    assert packed.tokenizer.pieces() == loaded.tokenizer.pieces()
    assert packed.meta["checkpoint"] == "epoch-2-avg-2" and packed.meta["precision"] == precision


def test_output_names_and_the_float_file(exp_dir: Path, tmp_path: Path) -> None:
    out, reference = tmp_path / "a/model", tmp_path / "b/float"
    files = ["--output", str(out), "--float-output", str(reference)]
    table = run_export(exp_dir, no_cuts, "--precision", "1", "--epoch", "1", *files)
    assert table.ratio == reference.stat().st_size / out.stat().st_size
    assert sorted(path.name for path in exp_dir.iterdir()) == ["epoch-1.pt", "epoch-2.pt"]
    assert read_packed(reference).extra["reference"] is True
    with pytest.raises(UserError, match="latent weights"):
        load_packed(reference)


@torch.no_grad()
def test_the_averaged_weights_as_a_checkpoint(exp_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_export(exp_dir, no_cuts, "--precision", "1", "--avg", "2", "--save-pretrained", "true")
    pretrained = exp_dir / "pretrained.pt"
    assert f"{pretrained}: latent weights" in capsys.readouterr().out
    assert load_checkpoint(pretrained).optimizer == {}
    direct = exp_dir / "pretrained-1bit.safetensors"
    again = exp_dir / "again"
    run_export(exp_dir, no_cuts, "--precision", "1", "--checkpoint", str(pretrained), "--output", str(again))
    assert load_packed(again).meta["checkpoint"] == "pretrained"
    for precision in (1, 2):
        outputs = []
        for loaded in (load_trained(CheckpointChoice(exp_dir, avg=n))[0] for n in (2, 1)):
            with use_precision(loaded.model, precision):
                outputs.append(loaded.model(*toy_batch())[0])
        assert not torch.equal(*outputs), "one epoch is not the mean of two"
        loaded, name = load_trained(CheckpointChoice(checkpoint=pretrained))
        with use_precision(loaded.model, precision):
            assert torch.equal(loaded.model(*toy_batch())[0], outputs[0]) and name == "pretrained"
    assert torch.equal(load_packed(again).model(*toy_batch())[0], load_packed(direct).model(*toy_batch())[0])


def test_a_float_model_is_its_own_reference(tmp_path: Path) -> None:
    save(toy_model("float"), tmp_path / "exp/epoch-1.pt")
    table = run_export(tmp_path / "exp", no_cuts, "--precision", "32", "--float-output", str(tmp_path / "float"))
    assert table.ratio == 1.0
    load_packed(tmp_path / "float")


def test_recalibrated_statistics_are_those_of_the_exported_precision(
    exp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, lens = toy_batch()
    batch = Batch(inputs=features, input_lens=lens, texts=[""] * 3, ids=list("abc"))
    monkeypatch.setattr(exporting, "calibration_batches", lambda config, loaded, cuts: [batch] * config.recalibrate_bn)
    means = {}
    for precision in ("1", "2"):
        run_export(exp_dir, lambda: None, "--precision", precision, "--recalibrate-bn", "3")
        loaded = load_packed(exp_dir / f"pretrained-{precision}bit.safetensors")
        assert loaded.meta["recalibrated_batches"] == 3
        means[precision] = loaded.model.encoder.layers[0].conv.norm.running_mean
    assert not torch.equal(means["1"], means["2"])


def test_recalibration_reads_training_cuts(exp_dir: Path, tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path / "feats")
    flags = ["--precision", "1", "--recalibrate-bn", "2", "--max-duration", "3", "--manifest-dir"]
    run_export(exp_dir, lambda: cuts, *flags, str(tmp_path / "feats"))
    loaded = load_packed(exp_dir / "pretrained-1bit.safetensors")
    assert loaded.meta["recalibrated_batches"] == 2
    with pytest.raises(UserError, match="not those that the model was trained on"):
        run_export(exp_dir, lambda: cuts, *flags, str(tmp_path))


def make_cuts(folder: Path):
    """Six cuts of a second with random stored features, and their settings beside them."""
    from lhotse import CutSet, MonoCut, NumpyFilesWriter, Recording, SupervisionSegment

    from lowbit_k2.data.features import write_feature_config

    write_feature_config(folder, FeatureConfig.from_dict(FEATURES))
    cuts = []
    with NumpyFilesWriter(folder / "storage") as writer:
        for i in range(6):
            recording = Recording(f"r{i}", [], 16000, 16000, 1.0)
            text = SupervisionSegment(f"s{i}", f"r{i}", 0.0, 1.0, text="word b")
            cut = MonoCut(f"c{i}", 0.0, 1.0, 0, recording=recording, supervisions=[text])
            matrix = torch.randn(100, 23, generator=torch.Generator().manual_seed(i)).numpy()
            cuts.append(with_features(cut, matrix, writer))
    return CutSet.from_cuts(cuts)


def with_features(cut, matrix, writer):
    """Attach stored features to a cut, as compute_fbank does."""
    from lhotse import Features

    key = writer.write(cut.id, matrix)
    cut.features = Features(
        type="fbank", num_frames=len(matrix), num_features=matrix.shape[1], frame_shift=0.01, sampling_rate=16000,
        start=0.0, duration=1.0, storage_type=writer.name, storage_path=str(writer.storage_path), storage_key=key,
        recording_id=cut.recording.id, channels=0,
    )  # fmt: skip
    return cut


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--precision", "4"], "never trained at 4 bits, only at 2, 1"),
        (["--precision", "32"], "never trained at 32 bits"),
        (["--precision", "1,2"], "names 2 layers, the model has 4"),
        (["--precision", "low"], "'low'"),
        (["--precision", "1", "--epoch", "9"], "epoch-9.pt"),
        (["--precision", "1", "--avg", "3"], "--avg 3"),
        (["--precision", "1", "--checkpoint", "none.pt"], "none.pt does not exist"),
        (["--precision", "1", "--checkpoint", "none.pt", "--avg", "2"], "names one file: leave out"),
        (["--precision", "1", "--recalibrate-bn", "-1"], "--recalibrate-bn must not be negative"),
        (["--precision", "1", "--onnx-type", "int8"], "--onnx-type int8 is for ONNX: add --format onnx"),
        (
            ["--precision", "1", "--format", "onnx", "--compress", "true"],
            "--compress is for packed files: leave it out",
        ),
        (["--precision", "1", "--format", "onnx", "--float-output", "f"], "--float-output is for packed files"),
        (["--precision", "4", "--format", "onnx"], "never trained at 4 bits, only at 2, 1"),
    ],
)
def test_refusals(exp_dir: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run_export(exp_dir, no_cuts, *more)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in exp_dir.iterdir()) == ["epoch-1.pt", "epoch-2.pt"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--output EXP/epoch-2.pt", "--output .*epoch-2.pt is a checkpoint, which would be lost"),
        ("--output EXP/../exp/./epoch-1.pt", "--output .*epoch-1.pt is a checkpoint"),
        ("--float-output EXP/epoch-2.pt", "--float-output .* is a checkpoint"),
        ("--output OTHER/a --float-output OTHER/b/../a", "--float-output .* is that of output, too"),
        ("--checkpoint OTHER/mine.pt --output OTHER/mine.pt", "--output .*mine.pt is a checkpoint"),
        ("--save-pretrained true --output EXP/pretrained.pt", "--save-pretrained .* is that of output, too"),
    ],
)
def test_what_is_read_is_not_overwritten(exp_dir: Path, tmp_path: Path, more: str, message: str) -> None:
    other = tmp_path / "other"
    (other / "b").mkdir(parents=True)
    shutil.copy(exp_dir / "epoch-2.pt", other / "mine.pt")

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for folder in (exp_dir, other) for path in folder.glob("*.*")}

    before = contents()
    flags = more.replace("EXP", str(exp_dir)).replace("OTHER", str(other)).split()
    with pytest.raises(UserError, match=message):
        run_export(exp_dir, no_cuts, "--precision", "1", *flags)
    assert contents() == before


def test_without_onnx_the_line_says_how_to_install_it(exp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="^ONNX files need the package onnx, .*: pip install -r requirements-onnx.txt$"):
        run_export(exp_dir, no_cuts, "--precision", "1", "--format", "onnx")
    assert sorted(path.name for path in exp_dir.iterdir()) == ["epoch-1.pt", "epoch-2.pt"]


def test_onnx_is_not_made_of_an_lstm_prediction_network(tmp_path: Path) -> None:
    config = TransducerConfig(ENCODER, vocab_size=7, decoder_dim=8, joiner_dim=8, decoder_kind="lstm")
    toy = Toy(make_model(config), config)
    quantize_model(toy.model, QuantConfig.preset("lossless16", precisions=(2, 1)))
    save(toy, tmp_path / "exp/epoch-1.pt")
    with pytest.raises(UserError, match="^--format onnx: sherpa-onnx takes a stateless prediction network, not --dec"):
        run_export(tmp_path / "exp", no_cuts, "--precision", "1", "--format", "onnx")


def test_nothing_half_written_where_the_output_cannot_be(exp_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(PackedFileError, match="taken cannot be written"):
        run_export(exp_dir, no_cuts, "--precision", "1", "--output", str(tmp_path / "taken"))
    assert not list((tmp_path / "taken").iterdir()) and not list(tmp_path.glob(".tmp*"))


def test_the_script_of_an4_runs_from_anywhere(repo_root: Path, exp_dir: Path, tmp_path: Path) -> None:
    script = repo_root / "egs/an4/export.py"
    command = [sys.executable, str(script), "--exp-dir", str(exp_dir), "--precision"]
    done = subprocess.run([*command, "1"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "encoder_linear" in done.stdout and (exp_dir / "pretrained-1bit.safetensors").is_file()
    done = subprocess.run([*command, "5"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: --precision 5") and done.stderr.count("\n") == 1
