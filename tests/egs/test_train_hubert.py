"""HuBERT through the scripts: label, pre-train, resume, distil, co-train, pack, extract, and train on the states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet

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
from lowbit_k2.scoring.recogs import read_recogs
from lowbit_k2.train.checkpoint import load_checkpoint
from tests.egs.scripts import AN4, LIBRISPEECH, Flag, Run, call, files_of, refused
from tests.models.hubert_samples import BASE
from tests.recipe.corpus import make_lang
from tests.recipe.waves import make_waves

SCRIPT, LABEL, EXTRACT = (
    LIBRISPEECH / "train_hubert.py",
    "lowbit_k2.recipe.label_frames",
    "lowbit_k2.recipe.extract_states",
)
GREEDY = "ctc-greedy-search"
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


@pytest.fixture(scope="module")
def states(student: tuple[Path, str], manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hidden states at 1 bit of the corpus, under the name that AN4's recipe knows."""
    folder = tmp_path_factory.mktemp("states")
    for path in manifests.glob("mine_*"):
        (manifests / path.name.replace("mine", "an4")).write_bytes(path.read_bytes())
    call(EXTRACT, *extracting(manifests, folder), "--exp-dir", student[0], "--precision", 1).good()
    return folder


def extracting(manifests: Path, folder: Path) -> list[Flag]:
    where = ["--manifest-dir", manifests, "--output-dir", folder]
    return [*where, "--corpus", "an4", "--splits", "train dev", "--num-threads", 1]


@pytest.fixture(scope="module")
def probe(states: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a recogniser of these states, and its units."""
    folder = tmp_path_factory.mktemp("probe")
    lang = make_lang(folder / "lang", "YES NO")
    own = ["--manifest-dir", states, "--lang-dir", lang, "--feature-normalize", "none", "--num-threads", 1]
    own += ["--model", "superb-tiny", "--num-states", 3, "--projection-dim", 16, "--d-model", 32, "--precisions", 32]
    own += ["--enable-spec-aug", "false", "--tensorboard", "false", "--scan-for-oom", "false", "--num-epochs", 12]
    own += ["--max-duration", 1, "--num-buckets", 2, "--warm-step", 10, "--lr-factor", 0.5, "--dropout", 0]
    call(AN4 / "train.py", *own, "--exp-dir", folder / "exp").good()
    return folder / "exp", lang


def test_states_are_stored_as_the_network_gives_them(
    states: Path, student: tuple[Path, str], manifests: Path, tmp_path: Path
) -> None:
    before = files_of(states)
    call(EXTRACT, *extracting(manifests, states), "--exp-dir", student[0], "--precision", 1).good()
    assert files_of(states) == before
    line = call(EXTRACT, *extracting(manifests, states), "--exp-dir", student[0], "--precision", 2).error()
    assert "was made from something else (bits" in line
    cuts = load_cuts(states, "an4", "dev")
    loaded, _ = load_trained(CheckpointChoice(student[0]))
    for cut in cuts:
        with torch.no_grad(), use_precision(loaded.model, 1):
            expected = torch.cat(loaded.model(load_samples(cut)[None]).hidden_states, dim=-1)[0].numpy()
        found = cut.load_features()[: len(expected)]
        assert np.abs(found - expected).max() < 2**-8
    features = read_feature_config(states)
    assert (features.type, features.num_mel_bins, features.frame_shift) == ("states", 48, 0.02)


def decode(states: Path, *flags: Flag, methods: str = GREEDY) -> Run:
    own = ["--manifest-dir", states, "--test-sets", "dev", "--decoding-method", methods]
    return call(AN4 / "decode.py", *own, *flags)


def test_a_recogniser_of_states_is_decoded_and_packed(states: Path, probe: tuple[Path, Path]) -> None:
    """From stored states to words, by its checkpoint and by its packed file."""
    exp, _ = probe
    weights = load_checkpoint(exp / "epoch-12.pt").model["encoder.state_weights"]
    assert weights.shape == (3,) and weights.any()
    line = decode(states, "--exp-dir", exp).good().out.splitlines()[0]
    assert line.startswith("[dev, ctc-greedy-search, epoch-12-avg-1-precision-32] %WER ") and "/ 6," in line
    (recogs,) = (exp / GREEDY).glob("recogs-dev-*.txt")
    words = {result[0]: list(result[2]) for result in read_recogs(recogs)}
    assert any(words.values())
    loaded, _ = load_trained(CheckpointChoice(exp))
    for cut in load_cuts(states, "an4", "dev"):
        with torch.no_grad():
            x = torch.from_numpy(cut.load_features())[None]
            best = loaded.model(x, torch.tensor([x.size(1)]))[0][0].argmax(dim=-1).unique_consecutive().tolist()
        assert loaded.tokenizer.decode([token for token in best if token]).split() == words[cut.id]
    call(AN4 / "export.py", "--exp-dir", exp, "--precision", 32, "--output", exp / "probe.packed").good()
    packed = decode(states, "--packed", exp / "probe.packed").good().out.splitlines()[0]
    assert packed.split("] %WER ")[1] == line.split("] %WER ")[1]


@pytest.mark.k2
def test_a_recogniser_of_states_is_searched_with_a_lexicon(states: Path, probe: tuple[Path, Path], tmp_path: Path):
    exp, lang = probe
    (tmp_path / "text").write_text("YES NO\nNO YES\n")
    recipe = "lowbit_k2.recipe."
    call(recipe + "prepare_lang", "--lang-dir", lang, "--transcript", tmp_path / "text").good()
    arpa = ["--words", lang / "words.txt", "--order", 2, "--arpa", tmp_path / "lm.arpa"]
    call(recipe + "make_lm", "--transcript", tmp_path / "text", *arpa).good()
    call(recipe + "compile_hlg", "--lang-dir", lang, "--lm", tmp_path / "lm.arpa").good()
    done = decode(states, "--exp-dir", exp, "--lang-dir", lang, methods="1best").good().out.splitlines()
    assert done[0].startswith("[dev, 1best, lm_scale_1, epoch-12-avg-1-precision-32] %WER ")
    (recogs,) = (exp / "1best").glob("recogs-dev-*.txt")
    found = [word for result in read_recogs(recogs) for word in result[2]]
    assert found and set(found) <= {"YES", "NO"}


def test_a_recogniser_of_states_reads_no_audio_and_no_filter_banks(
    states: Path, probe: tuple[Path, Path], manifests: Path, tmp_path: Path
) -> None:
    exp, _ = probe
    audio = next((manifests.parent / "wav").glob("*.wav"))
    line = call(AN4 / "decode.py", "--exp-dir", exp, "--wav", audio).error()
    assert "the model reads hidden states of another one: store them by lowbit_k2.recipe.extract_states" in line
    line = decode(states, "--exp-dir", exp, "--on-the-fly-feats", "true").error()
    assert "store them by lowbit_k2.recipe.extract_states" in line
    call("lowbit_k2.recipe.compute_fbank", "--corpus", "an4", "--splits", "dev", "--manifest-dir", manifests,
         "--output-dir", tmp_path / "fbank").good()  # fmt: skip
    line = decode(tmp_path / "fbank", "--exp-dir", exp).error()
    assert "states" in line and str(tmp_path / "fbank") in line


def test_costs_are_told_without_data(tmp_path: Path) -> None:
    done = call(SCRIPT, "--model", "base", "--dry-run", "--exp-dir", tmp_path / "exp").good().out.splitlines()
    assert done[0].startswith("HuBERT base: 94.371 M parameters") and not (tmp_path / "exp").exists()
    assert {line.split()[0] for line in done[2:15]} == {"float", "bit-l", "bit-la", "sqwq"}


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


def test_audio_that_is_shorter_than_a_frame(
    pretrained: tuple[Path, str], labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Single cuts are left out, and named; where no cut is left, one line."""
    manifests = make_waves(tmp_path / "waves", train=2, dev=2)
    short = tmp_path / "short"
    short.mkdir()
    for split, number in (("train", 2), ("dev", 1)):
        cuts = list(speech_cuts(manifests, "mine", [split], SAMPLING_RATE))
        cut = [c.truncate(duration=0.02, preserve_id=True) for c in cuts[:number]] + cuts[number:]
        CutSet.from_cuts(cut).to_file(short / f"mine_cuts_{split}.jsonl.gz")
    words = "shorter than the window of one frame, 400 samples at 16 kHz"
    where = ["--manifest-dir", short, "--output-dir", tmp_path / "out", *SPEECH]
    own = ["--splits", "train", "--exp-dir", pretrained[0]]
    assert f"train: every cut is {words}: give longer audio" in refused(short, EXTRACT, *where, *own)
    assert f"train: every cut is {words}" in call(LABEL, *where, "--splits", "train").error()
    call(EXTRACT, *where, "--splits", "dev", "--exp-dir", pretrained[0]).good()
    assert f"dev: 1 cuts are left out, first dev-00: {words}" in caplog.text
    assert list(load_cuts(tmp_path / "out", "mine", "dev").ids) == ["dev-01"]
    own = [*FIXED, "--manifest-dir", short, "--labels-dir", labels, "--exp-dir", tmp_path / "exp"]
    line = call(SCRIPT, *own).error()
    assert "the training set" in line and not (tmp_path / "exp").exists()
