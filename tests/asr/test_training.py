"""What train.py does with its flags, and that it finds out what is wrong before it writes anything."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from lowbit_k2 import launch
from lowbit_k2.asr.model_io import CheckpointChoice, load_trained
from lowbit_k2.asr.training import QuantOptions, TrainingConfig, find_start, set_up_device
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import UserError
from lowbit_k2.losses.co_training import CoTraining
from lowbit_k2.recipe.training_flags import read_training_flags, training_parser
from lowbit_k2.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lowbit_k2.train.distributed import DistributedContext
from tests.asr.running import run_training
from tests.recipe.corpus import TINY, Corpus, make_corpus, make_lang


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def flags(*texts: str):
    return training_parser(None).parse_args([word for text in texts for word in text.split()])


def configs(*texts: str) -> TrainingConfig:
    return read_training_flags(flags(*texts))


def train(corpus: Corpus, exp_dir: Path, *more: str, cuts: CutSet | None = None) -> None:
    fixed = ["--max-duration", "4", "--num-buckets", "2", "--warm-step", "5", "--tensorboard", "false"]
    args = training_parser(None).parse_args([*corpus.where, *TINY, *fixed, "--exp-dir", str(exp_dir), *more])
    run_training(args, corpus.cuts if cuts is None else cuts, corpus.cuts.subset(first=3))


OPTIONS = [
    (field.name, choice)
    for field in fields(QuantOptions)
    if field.name != "preset"
    for choice in field.metadata["choices"]
]

# --- flags ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "choice"), OPTIONS)
def test_every_option_of_the_quantizer_arrives(name: str, choice: str) -> None:
    of_scheme = ("scale", "granularity", "quantizer", "input_bits")
    preset = "bit-l" if name == "input_bits" else "paper"  # which has a grid for inputs of any number of bits
    config = configs(f"--quant-config {preset} --precisions 2,1", f"--{name.replace('_', '-')} {choice}").quant_config()
    holder = config.schemes["attention"] if name in of_scheme else config
    assert str(getattr(holder, name)) == choice and config.switched_precisions == (2, 1)


@pytest.mark.parametrize(
    ("precisions", "name", "trained"),
    [
        ("32", "float", (32,)),
        ("1", "lossless16", (1,)),
        ("1,2,sp", "lossless16", (2, 1)),
        ("4,2", "lossless16", (4, 2)),
    ],
)
def test_precisions_choose_the_quantizers(precisions: str, name: str, trained: tuple[int, ...]) -> None:
    config = configs(f"--precisions {precisions}").quant_config()
    assert config.name == name and config.switched_precisions == trained


def test_a_float_teacher_is_among_the_precisions() -> None:
    assert configs("--precisions 2,1 --teacher 32").quant_config().switched_precisions == (32, 2, 1)


def test_flags_replace_fields_of_the_model_preset() -> None:
    config = configs("--model paper --num-layers 3 --conv-norm layer --dropout 0.2").model_config(77, 40)
    encoder = config.encoder
    assert (config.d_model, encoder.layer_ffn_dims, config.num_layers) == (256, (2048,) * 3, 3)
    assert (encoder.conv_norm, encoder.dropout, config.vocab_size, config.num_features) == ("layer", 0.2, 77, 40)


def test_loop_and_optimiser() -> None:
    loop = configs("--use-bf16 true --num-epochs 3 --accum-grad 2 --seed 7 --save-every-n 11").loop
    assert (loop.amp, loop.num_epochs, loop.accum_grad, loop.seed, loop.save_every_n) == ("bfloat16", 3, 2, 7, 11)
    optim = configs("--lr-factor 2 --warm-step 9 --weight-decay 0 --clip-grad-norm 1").optim
    assert (optim.lr_factor, optim.warm_step, optim.weight_decay, optim.clip_grad_norm) == (2.0, 9, 0.0, 1.0)


def test_where_a_run_starts(tmp_path: Path) -> None:
    def start(text: str = "") -> Path | None:
        return find_start(configs(f"--exp-dir {tmp_path} {text}").run)

    assert start() is None and start("--resume true") is None
    for update, name in ((10, "epoch-1"), (15, "checkpoint-15"), (20, "epoch-2")):
        save_checkpoint(tmp_path / f"{name}.pt", Checkpoint(model={}, meta={"update": update}))
    assert start("--resume true") == tmp_path / "epoch-2.pt"
    assert start("--start-epoch 2") == tmp_path / "epoch-1.pt"
    assert start("--start-batch 15") == tmp_path / "checkpoint-15.pt"
    with pytest.raises(UserError, match=r"holds epoch-2\.pt already: set resume"):
        start()
    with pytest.raises(UserError, match=r"epoch-3\.pt does not exist"):
        start("--start-epoch 4")


# --- runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", ["--precisions 32", "--precisions 1 --use-bf16 true", "--precisions 2,1 --accum-grad 2"]
)
def test_other_ways_to_train(corpus: Corpus, tmp_path: Path, more: str) -> None:
    train(corpus, tmp_path, "--num-epochs", "1", *more.split())
    checkpoint = load_checkpoint(tmp_path / "epoch-1.pt")
    assert checkpoint.meta["update"] >= 2
    assert all(tensor.isfinite().all() for tensor in checkpoint.model.values() if tensor.is_floating_point())


def test_few_bad_cuts_are_dropped_and_counted(corpus: Corpus, tmp_path: Path) -> None:
    cuts = [cut.map_supervisions(lambda s: replace(s, text="")) if cut.id == "c05" else cut for cut in corpus.cuts]
    train(corpus, tmp_path, "--num-epochs", "1", cuts=CutSet.from_cuts(cuts))
    [log] = (tmp_path / "log").iterdir()
    text = log.read_text()
    assert "training: 23 of 24 cuts kept, dropped: 1 empty-text (as c05)" in text
    assert "validation: all 3 cuts kept" in text and text.index("encoder_linear") < text.index("epoch 1, valid")


def test_units_of_the_same_number_are_not_the_same_units(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path / "exp", "--num-epochs", "1")
    other = make_lang(tmp_path / "lang", "YES NO GO " * 9 + "ON")
    with pytest.raises(UserError, match="another tokenizer configuration"):
        train(corpus, tmp_path / "exp", "--num-epochs", "2", "--resume", "true", "--lang-dir", str(other))


def test_an_epoch_without_batches_is_an_error(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="switch drop_last off"):
        train(corpus, tmp_path, "--num-epochs", "1", "--drop-last", "true", "--max-duration", "400")
    assert not list(tmp_path.glob("*.pt"))


def test_a_large_corpus_stays_on_disk_and_is_checked_once(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading features only to look at them again at every epoch would double the reading."""
    from lowbit_k2.data import checked, datamodule

    corpus.cuts.to_file(tmp_path / "toy_cuts_train.jsonl.gz")
    loaded = []
    load = datamodule.load_features
    monkeypatch.setattr(datamodule, "load_features", lambda cut, *rest: loaded.append(cut.id) or load(cut, *rest))
    lazy = load_cuts(tmp_path, "toy", "train", lazy=True)
    monkeypatch.setattr(checked, "SAMPLE", 0.0)
    for record in corpus.manifest_dir.glob(".checked-*"):
        record.unlink()
    train(corpus, tmp_path / "exp", "--num-epochs", "2", "--scan-for-oom", "false", cuts=lazy)
    train(corpus, tmp_path / "again", "--num-epochs", "1", "--scan-for-oom", "false", cuts=lazy)
    assert sum(name == "c20" for name in loaded) == (1 + 2) + 1  # once for the filter, once an epoch


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("--lang-dir {}/none", "run train_bpe"),
        ("--use-fp16 true --use-bf16 true", "exclude each other"),
        ("--precisions 2,1 --quant-config float", "use 32"),
        ("--max-duration 0", "--max-duration"),
        ("--enable-musan true", "musan"),
    ],
)
def test_refusals_write_nothing(corpus: Corpus, tmp_path: Path, more: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        train(corpus, tmp_path / "exp", *more.format(tmp_path).split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("cpu", "warned"), [("flags : avx2", True), ("flags : avx512_bf16 x", False)])
def test_a_cpu_without_bfloat16_is_named(
    cpu: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(launch, "CPU_INFO", tmp_path / "cpuinfo")
    for given in ("true", "false"):
        caplog.clear()
        set_up_device(0, configs(f"--use-bf16 {given}").loop, DistributedContext())
        assert ("no bfloat16 instructions" in caplog.text) == (warned and given == "true")


def test_changed_flags_are_told_when_a_run_goes_on(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(corpus, tmp_path, "--num-epochs", "1")
    told: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: told.append(text % args))
    train(corpus, tmp_path, "--num-epochs", "2", "--resume", "true", "--keep-last-k", "5")
    assert told == []
    train(corpus, tmp_path, "--num-epochs", "3", "--resume", "true", "--seed", "7", "--lr-factor", "0.25")
    [line] = told
    assert line.startswith("continuing with other settings than before: ")
    assert {"loop.seed 42 -> 7", "optim.lr_factor 1.0 -> 0.25"} <= set(line.split(": ", 1)[1].split("; "))


@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_senseless_number_of_processes(corpus: Corpus, tmp_path: Path, number: str) -> None:
    with pytest.raises(UserError, match="--world-size"):
        train(corpus, tmp_path, "--world-size", number)
    assert not list(tmp_path.iterdir())


def test_the_ends_of_the_stochastic_schedule() -> None:
    config = configs("--sp-schedule linear --sp-first 0.1 --sp-last 0.6").co_training
    found = CoTraining(config, 6, "encoder.layers", seed=1).probabilities
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    with pytest.raises(UserError, match="--sp-last must be at most 1, it is 1.5"):
        configs("--sp-last 1.5")


def test_the_log_stands_alone(corpus: Corpus, tmp_path: Path) -> None:
    more = ["--num-epochs", "1", "--log-interval", "1", "--valid-interval", "2", "--precisions", "2,1"]
    train(corpus, tmp_path, *more)
    [log] = (tmp_path / "log").iterdir()
    text = log.read_text()
    head = text[: text.index("epoch 1, update 1:")]
    for word in ("command: ", "versions: lowbit_k2 ", f"torch {torch.__version__}", "commit: ", "machine: "):
        assert word in head, word
    updates = load_checkpoint(tmp_path / "epoch-1.pt").meta["update"]
    for number in range(1, updates + 1):
        assert f"epoch 1, update {number}: loss=" in text
    assert "loss_2=" in text and "kl_1=" in text and "epoch 1, valid at update 2: loss_2=" in text


def test_a_run_starts_from_another_model(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path / "float", "--num-epochs", "1", "--precisions", "32")
    start = ["--init-from", str(tmp_path / "float/epoch-1.pt"), "--freeze", "encoder.subsampling"]
    train(corpus, tmp_path / "low", "--num-epochs", "1", "--precisions", "1", *start)
    before, after = (load_checkpoint(tmp_path / name / "epoch-1.pt").model for name in ("float", "low"))
    name = "encoder.subsampling.conv1"
    assert torch.equal(before[f"{name}.weight"], after[f"{name}.parametrizations.weight.original"])
    name = "encoder.layers.0.ff1.w1"
    assert not torch.equal(before[f"{name}.weight"], after[f"{name}.parametrizations.weight.original"])
    with pytest.raises(UserError, match="--init-from .*none.pt does not exist"):
        train(corpus, tmp_path / "other", "--init-from", str(tmp_path / "none.pt"))


def test_checkpoints_of_before_there_were_kinds_are_read(corpus: Corpus, tmp_path: Path) -> None:
    """A CTC model was the encoder's settings with the vocabulary among them, without a kind."""
    train(corpus, tmp_path, "--num-epochs", "1", "--precisions", "2,1")
    checkpoint = load_checkpoint(tmp_path / "epoch-1.pt")
    model = dict(checkpoint.meta["model"])
    old = {**model["encoder"], "vocab_size": model["vocab_size"]}
    del old["kind"]
    save_checkpoint(tmp_path / "old/epoch-1.pt", replace(checkpoint, meta={**checkpoint.meta, "model": old}))
    loaded, _ = load_trained(CheckpointChoice(tmp_path / "old"))
    assert loaded.model_config.to_dict() == model


@pytest.mark.parametrize(
    "preset, quantizer, granularity", [("bit-l", "elastic", "tensor"), ("sqwq", "squashed", "channel")]
)
def test_a_preset_keeps_its_quantizer_unless_another_is_named(preset: str, quantizer: str, granularity: str) -> None:
    own = configs(f"--quant-config {preset} --precisions 2,1").quant_config().schemes["attention"]
    assert (own.quantizer, own.granularity) == (quantizer, granularity) and own.input_bits
    named = configs(f"--quant-config {preset} --precisions 2,1 --quantizer linear").quant_config().schemes["attention"]
    assert named.quantizer == "linear"
    with pytest.raises(UserError, match=f"--quantizer {quantizer}: ADMM needs an even grid"):
        configs(f"--quant-config {preset} --precisions 2 --admm-every 5").quant_config()
