"""Cosines and S8BQAT in the training loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowbit_k2.core.config import ConfigError
from lowbit_k2.errors import UserError
from lowbit_k2.quant import use_precision
from lowbit_k2.quant.switching import latent_weights
from lowbit_k2.train.checkpoint import load_checkpoint
from lowbit_k2.train.cosine import CosineConfig
from lowbit_k2.train.drawing import DrawingConfig
from lowbit_k2.train.epochs import train_epoch
from lowbit_k2.train.trainer import LoopConfig, Trainer
from lowbit_k2.train.update import update
from tests.train.toy import run_epochs, toy_batches, toy_trainer

SNAPS = CosineConfig(cosine_lambda=5e-4, cosine_start=2, snap_every=3)


def trainer_with(folder: Path, config: CosineConfig, quantizer: str = "codebook", epochs: int = 2) -> Trainer:
    loop = LoopConfig(num_epochs=epochs, average_period=2, save_every_n=4, tensorboard=False)
    return toy_trainer(folder, ("3",), "paper", loop=loop, drawing=DrawingConfig(quantizer, cosine=config))


def low(trainer: Trainer) -> dict:
    return {q: w for q, w in latent_weights(trainer.model).items() if q.bits == (3,)}


def hard_share(trainer: Trainer) -> float:
    """Of the low-bit tensors, those whose weights lie on their values."""
    training = trainer.model.training
    with use_precision(trainer.model.eval(), 3):
        found = [torch.equal(quantizer(weight), weight) for quantizer, weight in low(trainer).items()]
    trainer.model.train(training)
    return sum(found) / len(found)


@pytest.mark.parametrize("quantizer", ["linear", "codebook"])
def test_the_pull_is_a_term_of_the_loss(quantizer: str, tmp_path: Path) -> None:
    config = CosineConfig(cosine_lambda=1.0, cosine_start=1)
    trainer, plain = trainer_with(tmp_path, config, quantizer), trainer_with(tmp_path, CosineConfig(), quantizer)
    assert plain.drawn is None
    first, second = toy_batches(1, count=2)
    own, other = update(trainer, [first]), update(plain, [first])
    assert own.keys() == other.keys() and own["loss_3"] == other["loss_3"]
    own, other = update(trainer, [second]), update(plain, [second])
    assert own["loss_3"] == other["loss_3"] and own["cosine"] > 0  # quantized passes, as without
    assert own["grad_norm"] > other["grad_norm"]


def test_float_passes_and_hard_snaps(tmp_path: Path) -> None:
    trainer, plain = trainer_with(tmp_path, SNAPS), toy_trainer(tmp_path, ("32",))
    seen = []
    for number, batch in enumerate(toy_batches(1, count=7), start=1):
        own, other = update(trainer, [batch]), update(plain, [batch])
        if number <= 3:
            assert own["loss_3"] == pytest.approx(other["loss_32"], rel=1e-6)
        assert ("cosine" in own) == (number > 2)
        seen.append(hard_share(trainer))
    assert seen == [0, 0, 1, 0, 0, 1, 0]


def test_tables_are_those_of_the_weights_where_it_begins(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, CosineConfig(cosine_lambda=5e-4, cosine_start=2, snap_every=5))
    tables = []
    for batch in toy_batches(1, count=5):
        with torch.no_grad():
            for weight in low(trainer).values():
                weight.mul_(1.5)
        update(trainer, [batch])
        tables.append(next(iter(low(trainer))).table(3).clone())
    assert torch.equal(tables[0], tables[1]) and torch.equal(tables[2], tables[4])
    assert tables[2].abs().max() > 2 * tables[1].abs().max()


def test_weights_are_hard_at_the_end(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, SNAPS)
    run_epochs(trainer, 2)
    assert hard_share(trainer) == 1
    other = trainer_with(tmp_path, SNAPS)
    other.model.load_state_dict(load_checkpoint(tmp_path / "epoch-2.pt").model)
    assert hard_share(other) == 1


@pytest.mark.parametrize(("config", "quantizer"), [(SNAPS, "codebook"), (CosineConfig(cosine_lambda=0.1), "linear")])
def test_two_epochs_equal_one_epoch_and_one_resumed(config: CosineConfig, quantizer: str, tmp_path: Path) -> None:
    run_epochs(trainer_with(tmp_path / "a", config, quantizer), 2)
    run_epochs(trainer_with(tmp_path / "b", config, quantizer), 1)
    for start in ("epoch-1.pt", "checkpoint-4.pt"):
        resumed = trainer_with(tmp_path / "b", config, quantizer)
        resumed.resume(tmp_path / "b" / start)
        run_epochs(resumed, 2)
        whole, parts = (load_checkpoint(tmp_path / x / "epoch-2.pt") for x in "ab")
        for section in ("model", "optimizer", "model_avg"):
            first, second = getattr(whole, section), getattr(parts, section)
            assert first.keys() == second.keys() and first
            assert all(torch.equal(first[name], second[name]) for name in first), (start, section)


def test_a_run_goes_on_with_its_own_schedule_only(tmp_path: Path) -> None:
    run_epochs(trainer_with(tmp_path, SNAPS), 1)
    for config in (CosineConfig(cosine_lambda=1e-3, cosine_start=2, snap_every=3), CosineConfig()):
        with pytest.raises(UserError, match="another schedule .*schedule.cosine_lambda 0.0005 -> "):
            trainer_with(tmp_path, config).resume(tmp_path / "epoch-1.pt")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CosineConfig(snap_every=11), "snap_every 11 leaves nothing of the 10 updates of this training: lower it"),
        (CosineConfig(cosine_lambda=1, cosine_start=10), "cosine_start 10 leaves nothing of the 10 updates"),
    ],
)
def test_settings_that_never_act(config: CosineConfig, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        train_epoch(trainer_with(tmp_path, config), toy_batches(1), total=5)
