"""ADMM in the training loop: float updates, weights that are hard at the end, and runs that go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowbit_k2.core.config import ConfigError
from lowbit_k2.errors import UserError
from lowbit_k2.losses.co_training import CoTrainingConfig
from lowbit_k2.quant import Allocation, use_precision
from lowbit_k2.quant.switching import latent_weights
from lowbit_k2.train.admm import AdmmConfig
from lowbit_k2.train.checkpoint import load_checkpoint, save_checkpoint
from lowbit_k2.train.drawing import DrawingConfig, drawn_weights
from lowbit_k2.train.drawn import one_allocation
from lowbit_k2.train.epochs import train_epoch
from lowbit_k2.train.trainer import LoopConfig, Trainer
from lowbit_k2.train.update import update
from tests.train.toy import run_epochs, toy_batches, toy_trainer

EVERY = AdmmConfig(every=3, gamma=0.1)


def admm_trainer(folder: Path, bits: str = "2", epochs: int = 2, config: AdmmConfig = EVERY) -> Trainer:
    loop = LoopConfig(num_epochs=epochs, average_period=2, save_every_n=4, tensorboard=False)
    return toy_trainer(folder, (bits,), loop=loop, drawing=DrawingConfig(admm=config))


def test_the_branch_runs_in_float(tmp_path: Path) -> None:
    trainer, plain = admm_trainer(tmp_path), toy_trainer(tmp_path, ("32",))
    own, other = update(trainer, toy_batches(1)[:1]), update(plain, toy_batches(1)[:1])
    assert own["loss_2"] == pytest.approx(other["loss_32"], rel=1e-6)
    assert 0 < own["admm_residual"] < 1


@pytest.mark.parametrize("bits", ["1", "2", "4", "8"])
def test_weights_are_hard_at_the_end(bits: str, tmp_path: Path) -> None:
    trainer = admm_trainer(tmp_path, bits)
    run_epochs(trainer, 1)
    with use_precision(trainer.model, int(bits)):
        assert not all(torch.equal(q(w), w) for q, w in latent_weights(trainer.model).items())
    run_epochs(trainer, 2)
    low = 0
    for model in (trainer.model, _restored(tmp_path, bits)):
        with use_precision(model.eval(), int(bits)):
            for quantizer, weight in latent_weights(model).items():
                if quantizer.active_bits <= 8:
                    low += 1
                    assert torch.equal(quantizer(weight), weight), quantizer.name
    assert low > 40


def _restored(folder: Path, bits: str) -> torch.nn.Module:
    model = admm_trainer(folder, bits).model
    model.load_state_dict(load_checkpoint(folder / "epoch-2.pt").model)
    return model


def test_the_residual_falls(tmp_path: Path) -> None:
    trainer = admm_trainer(tmp_path, epochs=99, config=AdmmConfig(every=25, gamma=0.1))
    trainer.schedule = lambda number, done: 0.01 * (1 - number / 170)
    found = [train_epoch(trainer, toy_batches(1, count=3))["admm_residual"] for _ in range(50)]
    assert found[-1] < 0.2 * found[0]


def test_projections_come_every_so_many_updates(tmp_path: Path) -> None:
    trainer = admm_trainer(tmp_path)
    assert trainer.drawn is not None
    seen = []
    for batch in toy_batches(1, count=6):
        update(trainer, [batch])
        seen.append(sum(float(t.multiplier.abs().sum()) for t in trainer.drawn.admm.tensors))
    assert seen[0] == seen[1] == 0 < seen[2] == seen[3] == seen[4] != seen[5]


def test_two_epochs_equal_one_epoch_and_one_resumed(tmp_path: Path) -> None:
    run_epochs(admm_trainer(tmp_path / "a"), 2)
    run_epochs(admm_trainer(tmp_path / "b"), 1)
    for start in ("epoch-1.pt", "checkpoint-4.pt"):
        resumed = admm_trainer(tmp_path / "b")
        resumed.resume(tmp_path / "b" / start)
        run_epochs(resumed, 2)
        whole, parts = (load_checkpoint(tmp_path / x / "epoch-2.pt") for x in "ab")
        for section in ("model", "optimizer", "model_avg", "admm"):
            first, second = getattr(whole, section), getattr(parts, section)
            assert first.keys() == second.keys() and first
            assert all(torch.equal(first[name], second[name]) for name in first), (start, section)


def test_a_run_goes_on_with_its_own_settings_only(tmp_path: Path) -> None:
    run_epochs(admm_trainer(tmp_path), 1)
    with pytest.raises(UserError, match="trained with another quant configuration.*fitted"):
        toy_trainer(tmp_path, ("2",)).resume(tmp_path / "epoch-1.pt")
    checkpoint = load_checkpoint(tmp_path / "epoch-1.pt")
    save_checkpoint(tmp_path / "epoch-1.pt", replace(checkpoint, admm={}))
    with pytest.raises(UserError, match="epoch-1.pt holds multipliers of other tensors, or none"):
        admm_trainer(tmp_path).resume(tmp_path / "epoch-1.pt")


def test_an_allocation_by_tensor(tmp_path: Path) -> None:
    Allocation({"": 4, "*.ff1.*": 1, "ctc_head": 8}, "mine").save(tmp_path / "mine.json")
    co_training = CoTrainingConfig(precisions=(str(tmp_path / "mine.json"),))
    trainer = toy_trainer(tmp_path, co_training.precisions, quant="mixed", drawing=DrawingConfig(admm=EVERY))
    bits = {t.quantizer.name: t.bits for t in trainer.drawn.admm.tensors}
    assert set(bits.values()) == {1, 4, 8} and bits["ctc_head.weight"] == 8
    assert bits["encoder.layers.0.ff1.w1.weight"] == 1


@pytest.mark.parametrize("precisions", [("2", "1", "sp"), ("4", "2"), ("32",), ("16",)])
def test_precisions_that_cannot_be(precisions: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=f"precisions {','.join(precisions)}: ADMM") as caught:
        one_allocation(CoTrainingConfig(precisions=precisions), "ADMM")
    assert "name one" in str(caught.value)
    assert drawn_weights(torch.nn.Linear(2, 2), DrawingConfig(), CoTrainingConfig(precisions=precisions)) is None


def test_a_float_teacher_has_no_say() -> None:
    with pytest.raises(ConfigError, match="precisions 2: ADMM draws weights to one precision"):
        one_allocation(CoTrainingConfig(precisions=("2",), teacher="32"), "ADMM")


@pytest.mark.parametrize("values", [{"every": -1}, {"gamma": 0.0}, {"gamma": float("nan")}, {"inner": 0}])
def test_settings_that_cannot_be(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        AdmmConfig(**values)
