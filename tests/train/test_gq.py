"""The General Quantizer in the training loop: when it acts, how alpha rises, hard ends, runs that go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowbit_k2.core.config import ConfigError
from lowbit_k2.errors import UserError
from lowbit_k2.quant import GeneralQuantizer, rederive_scales, use_precision
from lowbit_k2.quant.general import GQ_SCALES
from lowbit_k2.quant.switching import latent_weights
from lowbit_k2.train.checkpoint import load_checkpoint
from lowbit_k2.train.drawing import DrawingConfig
from lowbit_k2.train.epochs import train_epoch
from lowbit_k2.train.gq import GqConfig
from lowbit_k2.train.trainer import LoopConfig, Trainer
from lowbit_k2.train.update import update
from tests.train.toy import run_epochs, toy_batches, toy_trainer

EVERY = GqConfig(gq_every=3, gq_scale="absmax")


def gq_trainer(
    folder: Path, *precisions: str, epochs: int = 2, config: GqConfig = EVERY, quant: str = "lossless16"
) -> Trainer:
    loop = LoopConfig(num_epochs=epochs, average_period=2, save_every_n=4, tensorboard=False)
    return toy_trainer(folder, precisions or ("4",), quant, loop=loop, drawing=DrawingConfig("gq", gq=config))


def tensors(trainer: Trainer) -> dict[GeneralQuantizer, torch.nn.Parameter]:
    return {q: w for q, w in latent_weights(trainer.model).items() if isinstance(q, GeneralQuantizer)}


def test_updates_are_those_of_the_float_model_between_applications(tmp_path: Path) -> None:
    trainer, plain = gq_trainer(tmp_path, quant="paper"), toy_trainer(tmp_path, ("32",))
    for number, batch in enumerate(toy_batches(1, count=3), start=1):
        own, other = update(trainer, [batch]), update(plain, [batch])
        assert own["loss_4"] == pytest.approx(other["loss_32"], rel=1e-6)
        assert ("gq_moved" in own) == (number == 3)
    floats = dict(plain.model.named_parameters())
    for quantizer, weight in tensors(trainer).items():
        assert not torch.allclose(weight, floats[quantizer.name], atol=1e-4)  # overwritten just now
    assert len(tensors(trainer)) > 20 and 0 < own["gq_moved"] < 1


def test_alpha_rises_with_the_share_done(tmp_path: Path) -> None:
    trainer = gq_trainer(tmp_path, config=GqConfig(gq_every=1, gq_alpha_start=20, gq_alpha_end=120))
    seen = []
    for epoch in (1, 2):
        trainer.batches_per_epoch = 5
        for batch in toy_batches(epoch):
            seen.append(update(trainer, [batch])["gq_alpha"])
            trainer.progress.batch += 1
        trainer.progress.batch, trainer.progress.epoch = 0, epoch + 1
    assert seen == pytest.approx([20 + 10 * n for n in range(10)])
    assert GqConfig().alpha(0.0) == 10 and GqConfig().alpha(1.0) == 400


@pytest.mark.parametrize("scale", GQ_SCALES)
def test_weights_are_hard_at_the_end(scale: str, tmp_path: Path) -> None:
    trainer = gq_trainer(tmp_path, config=GqConfig(gq_every=3, gq_scale=scale))
    run_epochs(trainer, 1)
    with use_precision(trainer.model.eval(), 4):
        assert not all(torch.equal(q(w), w) for q, w in tensors(trainer).items())
    run_epochs(trainer, 2)
    other = gq_trainer(tmp_path, config=GqConfig(gq_every=3, gq_scale=scale))
    other.model.load_state_dict(load_checkpoint(tmp_path / "epoch-2.pt").model)
    rederive_scales(other.model)
    for model_of in (trainer, other):
        with use_precision(model_of.model.eval(), 4):
            for quantizer, weight in tensors(model_of).items():
                assert torch.equal(quantizer(weight), weight), quantizer.name


def test_a_checkpoint_from_the_middle_is_hardened_by_those_who_read_it(tmp_path: Path) -> None:
    run_epochs(gq_trainer(tmp_path), 1)
    other = gq_trainer(tmp_path)
    other.model.load_state_dict(load_checkpoint(tmp_path / "epoch-1.pt").model)
    rederive_scales(other.model)
    with use_precision(other.model.eval(), 4):
        for quantizer, weight in tensors(other).items():
            value = quantizer(weight)
            assert not torch.equal(value, weight)
            assert set(value.unique().tolist()) <= set(quantizer.table(quantizer.active_bits).tolist())


def test_co_training_leaves_the_latents_to_the_optimiser(tmp_path: Path) -> None:
    trainer = gq_trainer(tmp_path, "4", "2", "sp", config=GqConfig(gq_every=1))
    assert not trainer.drawn.general.overwrites
    before = {quantizer: (weight.clone(), quantizer.mu.clone()) for quantizer, weight in tensors(trainer).items()}
    trainer.schedule = lambda number, done: 0.0
    found = update(trainer, toy_batches(1)[:1])
    assert found["loss_2"] != found["loss_4"] and "gq_moved" in found
    assert all(torch.equal(weight, before[quantizer][0]) for quantizer, weight in tensors(trainer).items())
    assert any(not torch.equal(quantizer.mu, before[quantizer][1]) for quantizer in tensors(trainer))


@pytest.mark.parametrize("precisions", [("4",), ("4", "2", "sp")])
def test_two_epochs_equal_one_epoch_and_one_resumed(precisions: tuple[str, ...], tmp_path: Path) -> None:
    run_epochs(gq_trainer(tmp_path / "a", *precisions), 2)
    run_epochs(gq_trainer(tmp_path / "b", *precisions), 1)
    resumed = gq_trainer(tmp_path / "b", *precisions)
    resumed.resume(tmp_path / "b" / "checkpoint-4.pt")
    run_epochs(resumed, 2)
    whole, parts = (load_checkpoint(tmp_path / x / "epoch-2.pt") for x in "ab")
    for section in ("model", "optimizer", "model_avg"):
        first, second = getattr(whole, section), getattr(parts, section)
        assert first.keys() == second.keys() and first
        assert all(torch.equal(first[name], second[name]) for name in first), section


@pytest.mark.parametrize(
    ("config", "epochs", "words"),
    [
        (GqConfig(gq_every=2, gq_scale="absmax"), 2, "another schedule (schedule.gq_every 3 -> 2)"),
        (GqConfig(gq_every=3, gq_alpha_end=500, gq_scale="absmax"), 2, "schedule.gq_alpha_end 400.0 -> 500"),
        (GqConfig(gq_every=3, gq_scale="none"), 2, "another quant configuration"),
        (EVERY, 3, "another schedule (schedule.num_epochs 2 -> 3)"),
        (GqConfig(gq_every=0, gq_scale="absmax"), 2, "another schedule (schedule.gq_every 3 -> None"),
    ],
)
def test_a_run_goes_on_with_its_own_schedule_only(config: GqConfig, epochs: int, words: str, tmp_path: Path) -> None:
    run_epochs(gq_trainer(tmp_path), 1)
    with pytest.raises(UserError) as caught:
        gq_trainer(tmp_path, config=config, epochs=epochs).resume(tmp_path / "epoch-1.pt")
    assert words in str(caught.value) and "start a new run" in str(caught.value) and "\n" not in str(caught.value)


def test_intervals_longer_than_the_training(tmp_path: Path) -> None:
    for every in (10, 11):
        trainer = gq_trainer(tmp_path, config=GqConfig(gq_every=every))
        if every == 10:
            train_epoch(trainer, toy_batches(1), total=5)
            continue
        with pytest.raises(ConfigError, match="gq_every 11 is more than the 10 updates of this training: lower it"):
            train_epoch(trainer, toy_batches(1), total=5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GqConfig(gq_alpha_start=50, gq_alpha_end=40), "gq_alpha_end 40 lies below gq_alpha_start 50"),
        (lambda: GqConfig(gq_alpha_end=1000), "gq_alpha_end must be at most 700"),
        (lambda: GqConfig(gq_every=-1), "gq_every must not be negative"),
        (lambda: GqConfig(gq_scale="max"), "gq_scale 'max' is unknown: choose one of none, power-of-two, absmax"),
        (lambda: gq_trainer(Path("x"), "32"), "no tensor of 1 to 8 bits has the quantizer gq"),
    ],
)
def test_refusals_are_one_line(make, words: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_without_applications_nothing_is_drawn(tmp_path: Path) -> None:
    trainer = gq_trainer(tmp_path, config=GqConfig(gq_every=0))
    assert trainer.drawn is None
    quantizer, weight = next((q, w) for q, w in tensors(trainer).items() if q.bits == (4,))
    with use_precision(trainer.model.train(), 4):
        assert len(quantizer(weight).unique()) <= 16
