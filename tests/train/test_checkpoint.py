"""Checkpoints: what they hold, how they average, what they refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.train.checkpoint import (
    Checkpoint,
    RunningAverage,
    average_checkpoints,
    load_checkpoint,
    save_checkpoint,
    select_checkpoint,
)
from lowbit_k2.train.epochs import save_epoch, train_epoch
from tests.train.toy import run_epochs, toy_batches, toy_trainer


def test_a_checkpoint_holds_tensors_and_strings_only(tmp_path):
    run_epochs(toy_trainer(tmp_path), 1)
    content = torch.load(tmp_path / "epoch-1.pt", weights_only=True)
    for value in content.values():
        assert isinstance(value, (str, dict))
        if isinstance(value, dict):
            assert all(isinstance(t, torch.Tensor) for t in value.values())
    assert json.loads(content["meta"])["model"]["encoder"]["d_model"] == 16


def test_damaged_and_foreign_files_give_one_line(tmp_path):
    path = tmp_path / "epoch-1.pt"
    save_checkpoint(path, Checkpoint(model={"w": torch.ones(3)}, meta={}))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)
    torch.save({"model": torch.ones(2)}, path)
    with pytest.raises(UserError, match="no checkpoint of this version"):
        load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_plain_average_is_the_mean_in_double_precision(tmp_path):
    states = [{"w": torch.randn(50), "n": torch.tensor(i)} for i in range(3)]
    for i, state in enumerate(states):
        save_checkpoint(tmp_path / f"epoch-{i}.pt", Checkpoint(model=state, meta={"i": i}))
    mean = average_checkpoints([tmp_path / f"epoch-{i}.pt" for i in range(3)])
    expected = torch.stack([s["w"].double() for s in states]).mean(0).float()
    torch.testing.assert_close(mean.model["w"], expected, rtol=2e-7, atol=0)  # a float32 rounding apart at most
    assert mean.model["n"] == 2 and mean.meta == {"i": 2}


@pytest.mark.parametrize("period", [1, 3])
def test_running_average_between_two_epochs_is_the_mean_over_their_updates(tmp_path, period):
    trainer = toy_trainer(tmp_path)
    trainer.average = RunningAverage(trainer.model, period)
    trainer.config = type(trainer.config)(average_period=period, tensorboard=False)
    states = {}
    for epoch in (1, 2):
        for batch in toy_batches(epoch, count=6):
            train_epoch(trainer, [batch])
            states[trainer.progress.update] = {n: v.double().clone() for n, v in trainer.model.state_dict().items()}
        trainer.progress.epoch = epoch
        save_epoch(trainer, {}, {})
    for avg, updates in ((1, None), (2, range(period, 13, period))):
        chosen = select_checkpoint(tmp_path, 2, 0, avg, use_averaged_model=True)
        for name, value in chosen.model.items():
            if not value.is_floating_point():
                continue
            expected = states[12][name] if updates is None else torch.stack([states[u][name] for u in updates]).mean(0)
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_average_between_two_epochs(tmp_path):
    trainer = toy_trainer(tmp_path)
    trainer.average = RunningAverage(trainer.model, 1)
    trainer.config = type(trainer.config)(average_period=1, tensorboard=False)
    states = []
    for epoch in (1, 2, 3):
        for batch in toy_batches(epoch, count=3):
            train_epoch(trainer, [batch])
            states.append(trainer.model.ctc_head.bias.detach().double().clone())
        save_epoch(trainer, {}, {})
    chosen = select_checkpoint(tmp_path, 3, 0, 2, use_averaged_model=True)
    name = "ctc_head.parametrizations.bias.original"
    expected = torch.stack([s for s in states[3:]]).mean(0)
    # the latent biases were averaged; lossless16 shows them rounded to fp16
    torch.testing.assert_close(chosen.model[name].double(), expected, rtol=2e-3, atol=1e-4)


def test_selection_refuses_what_is_not_there(tmp_path):
    save_checkpoint(tmp_path / "epoch-1.pt", Checkpoint(model={"w": torch.ones(1)}, meta={}))
    with pytest.raises(UserError, match="avg 2"):
        select_checkpoint(tmp_path, 1, 0, 2, False)
    with pytest.raises(UserError, match=r"epoch-5\.pt"):
        select_checkpoint(tmp_path, 5, 0, 1, False)
    with pytest.raises(UserError, match=r"checkpoint-100\.pt"):
        select_checkpoint(tmp_path, 0, 100, 1, False)
    with pytest.raises(UserError, match="exp_dir"):
        select_checkpoint(tmp_path / "nowhere", 1, 0, 1, False)


class _Harmful:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.mark}",))


def test_code_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"model": _Harmful(mark)}, tmp_path / "epoch-1.pt")
    with pytest.raises(UserError, match="epoch-1.pt"):
        load_checkpoint(tmp_path / "epoch-1.pt")
    assert not mark.exists()
