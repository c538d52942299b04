"""HuBERT through the scripts: label, pre-train, resume, distil, co-train, pack, extract, and train on the states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit_k2.asr.model_io import CheckpointChoice, load_packed, load_trained
from lowbit_k2.cli import run as cli
from lowbit_k2.core.hubert import SAMPLING_RATE, HubertConfig
from lowbit_k2.data.clusters import Clusters, MfccFrames
from lowbit_k2.data.features import load_samples, read_feature_config
from lowbit_k2.data.frame_labels import FrameLabels, labels_path
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.data.preparation import speech_cuts
from lowbit_k2.errors import UserError
from lowbit_k2.quant import use_precision
from lowbit_k2.train.checkpoint import load_checkpoint
from tests.egs.scripts import AN4, LIBRISPEECH, Flag, call, files_of, refused
from tests.models.hubert_samples import BASE
from tests.recipe.corpus import make_lang
from tests.recipe.waves import make_waves

SCRIPT, LABEL, EXTRACT = (
    LIBRISPEECH / "train_hubert.py",
    "lowbit_k2.recipe.label_frames",
    "lowbit_k2.recipe.extract_states",
)
SMALL = replace(BASE, conv_dims=(8,), d_model=16, num_layers=2, ffn_dim=16)
SPEECH: list[Flag] = ["--corpus", "mine", "--num-threads", 1]
SPLITS = ["--train-splits", "train", "--valid-splits", "dev"]
FIXED = [
    *SPEECH,
    *SPLITS,
    "--max-duration",
    3,
    "--tensorboard",
    "false",
    "--scan-for-oom",
    "false",
    "--log-interval",
    1,
]
FIXED += ["--warm-step", 4, "--lr-factor", 0.1, "--model", "small", "--mask-length", 3, "--num-buckets", 2]


@pytest.fixture(scope="module", autouse=True)
def small_size() -> None:
    """A size of a few thousand parameters."""
    HubertConfig.sizes["small"] = SMALL
    yield
    del HubertConfig.sizes["small"]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_waves(tmp_path_factory.mktemp("waves"))


@pytest.fixture(scope="module")
def labels(manifests: Path) -> Path:
    """By clusters that are there already, for which scikit-learn is not needed."""
    folder = manifests.parent / "labels"
    cuts = speech_cuts(manifests, "mine", ["train"], SAMPLING_RATE)
    frames = np.concatenate([MfccFrames(SMALL)(load_samples(cut)) for cut in cuts])
    Clusters(frames[:: len(frames) // 6][:6]).save(folder / "clusters.safetensors")
    where = ["--manifest-dir", manifests, "--output-dir", folder, "--num-clusters", 6]
    call(LABEL, *SPEECH, "--splits", "train dev", *where).good()
    return folder


@pytest.fixture(scope="module")
def pretrained(manifests: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a float model, and the log."""
    exp = tmp_path_factory.mktemp("exp") / "float"
    own = ["--manifest-dir", manifests, "--labels-dir", labels, "--exp-dir", exp, "--unmasked-weight", 1]
    return exp, call(SCRIPT, *FIXED, *own, "--num-epochs", 6, "--save-every-n", 7, "--keep-last-k", 9).good().err


@pytest.fixture(scope="module")
def student(
    manifests: Path, pretrained: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Co-trained at four precisions and stochastic precision."""
    exp = tmp_path_factory.mktemp("exp") / "student"
    own = distilling(manifests, pretrained[0], exp, "bit-la", "8,2,1,sp")
    return exp, call(SCRIPT, *own, "--num-epochs", 3).good().err


def distilling(manifests: Path, teacher: Path, exp: Path, preset: str, precisions: str) -> list[Flag]:
    own = ["--manifest-dir", manifests, "--exp-dir", exp, "--quant-config", preset, "--precisions", precisions]
    own += ["--objective", "distillation", "--teacher", teacher / "epoch-6.pt"]
    return [*FIXED, *own, "--lr-factor", 0.03]


def losses(log: str, name: str = "loss") -> list[float]:
    """Those of the validations."""
    lines = [line for line in log.splitlines() if ", valid at update " in line]
    return [float(line.split(f" {name}=")[1].split()[0]) for line in lines]


def test_labels_are_of_these_frames(manifests: Path, labels: Path) -> None:
    found = FrameLabels.load([labels_path(labels, "mine", split) for split in ("train", "dev")])
    clusters = Clusters.load(labels / "clusters.safetensors")
    assert found.num_classes == 6 and len(found.by_id) == 15
    for cut in speech_cuts(manifests, "mine", ["dev"], SAMPLING_RATE):
        assert np.array_equal(found.by_id[cut.id], clusters.assign(MfccFrames(SMALL)(load_samples(cut))))
    where = ["--manifest-dir", manifests, "--output-dir", labels, "--num-clusters", 6]
    before = files_of(labels)
    call(LABEL, *SPEECH, "--splits", "train dev", *where).good()
    assert files_of(labels) == before


def test_pretraining_learns_and_goes_on_where_it_was(
    pretrained: tuple[Path, str], manifests: Path, labels: Path, tmp_path: Path
) -> None:
    exp, log = pretrained
    assert losses(log)[-1] < 0.95 * losses(log)[0] and "accuracy_32=" in log
    meta = load_checkpoint(exp / "epoch-6.pt").meta
    assert (
        meta["model"]["kind"] == "hubert-masked"
        and meta["model"]["vocab_size"] == 6
        and set(meta["labels"]) == {"train", "dev"}
    )
    own = [*FIXED, "--manifest-dir", manifests, "--labels-dir", labels, "--unmasked-weight", 1]
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp/checkpoint-7.pt").write_bytes((exp / "checkpoint-7.pt").read_bytes())
    call(SCRIPT, *own, "--exp-dir", tmp_path / "exp", "--num-epochs", 6, "--start-batch", 7).good()
    one, two = (load_checkpoint(folder / "epoch-6.pt").model for folder in (exp, tmp_path / "exp"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_states_are_clustered_and_extracted(pretrained: tuple[Path, str], manifests: Path, tmp_path: Path) -> None:
    """The second iteration of labels, and features that any recipe takes."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install -r requirements-hubert.txt")
    own = ["--manifest-dir", manifests, "--output-dir", tmp_path, "--exp-dir", pretrained[0], "--layer", 1]
    call(LABEL, *SPEECH, "--splits", "train", *own, "--num-clusters", 4).good()
    loaded, _ = load_trained(CheckpointChoice(pretrained[0]))
    found, clusters = (
        FrameLabels.load([labels_path(tmp_path, "mine", "train")]),
        Clusters.load(tmp_path / "clusters.safetensors"),
    )
    assert clusters.centroids.shape == (4, 16)
    for cut in speech_cuts(manifests, "mine", ["train"], SAMPLING_RATE).subset(first=3):
        with torch.no_grad():
            states = loaded.model(load_samples(cut)[None]).hidden_states[1][0].numpy()
        agrees = clusters.assign(states) == found.by_id[cut.id]
        assert len(states) == len(agrees) and agrees.mean() > 0.95  # batches round otherwise
    line = call(LABEL, *SPEECH, "--splits", "train", *own[:-1], 2, "--num-clusters", 4).error()
    assert "was made from something else" in line


def test_students_are_compared_with_their_teacher(student: tuple[Path, str], pretrained: tuple[Path, str]) -> None:
    exp, log = student
    """That they come nearer, tests/losses/test_representation.py shows on a model whose weights count."""
    assert "grids of 20 activations set by the batch of the " in log
    assert all(f" kl_{name}=" in log for name in ("8", "2", "1", "sp"))
    assert 0 < losses(log, "loss_8")[-1] < losses(log, "loss_1")[-1]
    meta = load_checkpoint(exp / "epoch-3.pt").meta
    assert (
        meta["model"]["kind"] == "hubert"
        and meta["model"]["dropout"] == 0
        and meta["tokenizer"] == {"kind": "", "bytes": ""}
    )


def test_a_student_is_packed(student: tuple[Path, str], tmp_path: Path) -> None:
    packed, x = tmp_path / "packed", torch.randn(2, 6000)
    call(LIBRISPEECH / "export.py", "--exp-dir", student[0], "--precision", 1, "--output", packed).good()
    loaded, _ = load_trained(CheckpointChoice(student[0]))
    with torch.no_grad(), use_precision(loaded.model, 1):
        assert torch.equal(load_packed(packed).model(x).out, loaded.model(x).out)
    with pytest.raises(UserError, match="a hubert recognises nothing: train a recogniser on its states"):
        cli(["transcribe", "--packed", str(packed), str(packed)])


def test_bits_are_reduced_step_by_step(pretrained: tuple[Path, str], manifests: Path, tmp_path: Path) -> None:
    own = distilling(manifests, pretrained[0], tmp_path / "exp", "bit-l", "8,2,1")
    log = call(SCRIPT, *own, "--num-epochs", 2, "--reduce-every", 2).good().err
    passes = [
        line.split("kl_")[1][0]
        for line in log.splitlines()
        if " kl_" in line and "valid" not in line and ", update " in line
    ]
    assert passes[:2] == ["8", "8"] and passes[2:4] == ["2", "2"] and set(passes[4:]) == {"1"} and len(passes) > 4


def test_squashed_weights_are_held_by_their_penalty(
    pretrained: tuple[Path, str], manifests: Path, tmp_path: Path
) -> None:
    own = distilling(manifests, pretrained[0], tmp_path / "exp", "sqwq", "2")
    log = call(SCRIPT, *own, "--num-epochs", 1, "--squash-lambda", 0.5).good().err
    first = next(line for line in log.splitlines() if "update 1: " in line)
    assert 0 <= float(first.split("loss_2=")[1].split()[0]) < 0.1  # weights begin at the deviation that is wanted
    assert "another co_training" not in log


def test_a_recogniser_trains_on_extracted_states(student: tuple[Path, str], manifests: Path, tmp_path: Path) -> None:
    where = ["--manifest-dir", manifests, "--output-dir", tmp_path / "states"]
    where += ["--corpus", "an4", "--splits", "train dev", "--num-threads", 1]
    for path in manifests.glob("mine_*"):
        (manifests / path.name.replace("mine", "an4")).write_bytes(path.read_bytes())
    call(EXTRACT, *where, "--exp-dir", student[0], "--precision", 1).good()
    before = files_of(tmp_path)
    call(EXTRACT, *where, "--exp-dir", student[0], "--precision", 1).good()
    assert files_of(tmp_path) == before
    line = call(EXTRACT, *where, "--exp-dir", student[0], "--precision", 2).error()
    assert "was made from something else (bits" in line
    cuts = load_cuts(tmp_path / "states", "an4", "dev")
    loaded, _ = load_trained(CheckpointChoice(student[0]))
    for cut in cuts:
        with torch.no_grad(), use_precision(loaded.model, 1):
            expected = torch.cat(loaded.model(load_samples(cut)[None]).hidden_states, dim=-1)[0].numpy()
        found = cut.load_features()[: len(expected)]
        assert np.abs(found - expected).max() < 2**-8
    features = read_feature_config(tmp_path / "states")
    assert (features.type, features.num_mel_bins, features.frame_shift) == ("states", 48, 0.02)
    lang = make_lang(tmp_path / "lang", "YES NO")
    own = ["--manifest-dir", tmp_path / "states", "--lang-dir", lang, "--feature-normalize", "none", "--num-threads", 1]
    own += ["--model", "superb-tiny", "--num-states", 3, "--projection-dim", 8, "--d-model", 8, "--precisions", 32]
    own += ["--enable-spec-aug", "false", "--tensorboard", "false", "--scan-for-oom", "false", "--num-epochs", 1]
    call(AN4 / "train.py", *own, "--exp-dir", tmp_path / "probe").good()
    weights = load_checkpoint(tmp_path / "probe/epoch-1.pt").model["encoder.state_weights"]
    assert weights.shape == (3,) and weights.any()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--labels-dir is needed: the folder that"),
        (["--labels-dir", "TMP"], "mine_labels_train.safetensors does not exist: run"),
        (["--objective", "distillation", "--precisions", "1"], "--teacher is needed: the checkpoint"),
        (["--objective", "distillation", "--teacher", "TMP/gone.pt"], "--teacher TMP/gone.pt does not exist"),
        (["--precisions", "2,1,sp", "--reduce-every", "3"], "--reduce-every goes with different numbers of bits alone"),
        (["--mask-share", "0"], "--mask-share must be positive"),
    ],
)
def test_bad_input_is_one_line(manifests: Path, tmp_path: Path, more: list[str], words: str) -> None:
    own = [*FIXED, "--manifest-dir", manifests, "--exp-dir", tmp_path / "exp"]
    assert words.replace("TMP", str(tmp_path)) in refused(tmp_path, SCRIPT, *own, *more)


def test_labels_of_other_audio_and_layers_that_are_not_there(
    pretrained: tuple[Path, str], manifests: Path, labels: Path, tmp_path: Path
) -> None:
    found = FrameLabels.load([labels_path(labels, "mine", "train")])
    for split in ("train", "dev"):
        cut = {name: row[:-1] for name, row in found.by_id.items()}
        FrameLabels(cut, 6).save(labels_path(tmp_path / "labels", "mine", split))
    own = [*FIXED, "--manifest-dir", manifests, "--labels-dir", tmp_path / "labels", "--exp-dir", tmp_path / "exp"]
    assert "label the frames of these very manifests" in refused(tmp_path, SCRIPT, *own)
    where = ["--manifest-dir", manifests, "--output-dir", tmp_path / "out", "--exp-dir", pretrained[0], *SPEECH]
    line = refused(tmp_path, EXTRACT, *where, "--splits", "dev", "--layers", "0,9")
    assert "--layers 0,9: give all, or numbers from 0 (the input) to 2" in line
    line = refused(tmp_path, LABEL, *where, "--splits", "dev", "--layer", 9)
    assert "--layer 9: the model has 0 to 2" in line
    assert "--splits is needed" in refused(tmp_path, LABEL, *where)
