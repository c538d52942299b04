"""The scan of the largest batches: it finds what does not fit and changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.quant.inputs import elastic_inputs
from lowbit_k2.train.epochs import train_epoch
from lowbit_k2.train.initialise import measure_inputs
from lowbit_k2.train.oom_scan import scan_for_oom
from tests.train.toy import toy_batches, toy_trainer


def test_one_batch_sets_the_grids_of_activations(tmp_path: Path) -> None:
    """As two ranks do, whose random numbers differ: grids are equal, and nothing else has changed."""
    batch, found = toy_batches(7, count=1)[0], []
    for seed in (1, 2):
        trainer = toy_trainer(tmp_path, quant="bit-l")
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        torch.manual_seed(seed)
        assert measure_inputs(trainer, lambda: {"most cuts": batch}) > 0
        assert all(grid.is_set for grid in elastic_inputs(trainer.model))
        assert measure_inputs(trainer, dict) == 0  # they are set: no batch is asked for
        found.append(trainer.model.state_dict())
        changed = {name for name, value in before.items() if not torch.equal(value, found[-1][name])}
        assert changed and all(name.endswith((".statistic", ".non_negative")) for name in changed)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert measure_inputs(toy_trainer(tmp_path), dict) == 0


@pytest.mark.parametrize("preset", ["lossless16", "bit-l"])  # of bit-l the first batch sets the grids of inputs
def test_training_is_the_same_after_a_scan(preset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    states, metrics = [], []
    for scanned in (False, True):
        trainer = toy_trainer(tmp_path, quant=preset)
        if scanned:
            large = toy_batches(7, count=2)
            with caplog.at_level(logging.INFO):
                scan_for_oom(trainer, {"most cuts": large[0], "longest cut": large[1]})
            assert "the batch of the most cuts: 2 utterances of up to 40 frames" in caplog.text
            assert "the batch of the longest cut: 2 utterances of up to 41 frames" in caplog.text
            assert all(p.grad is None for p in trainer.model.parameters()) and trainer.progress.update == 0
        metrics.append(train_epoch(trainer, toy_batches(1)))
        states.append(trainer.model.state_dict())
    assert metrics[0] == metrics[1]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    "message",
    ["CUDA out of memory. Tried to allocate 2.00 GiB", "DefaultCPUAllocator: can't allocate memory: you tried"],
)
def test_what_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    trainer = toy_trainer(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    passed = trainer.criterion

    def fail_if_long(*args):
        out = passed(*args)
        if out.num_frames > 16:
            raise RuntimeError(message)
        return out

    monkeypatch.setattr(trainer, "criterion", fail_if_long)
    short, long = toy_batches(7, count=5)[::4]
    scan_for_oom(trainer, {"most cuts": short})
    with pytest.raises(UserError, match="longest cut .2 utterances of up to 44 frames.*lower max_duration"):
        scan_for_oom(trainer, {"most cuts": short, "longest cut": long})
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in trainer.model.parameters())


def test_other_errors_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args):
        raise RuntimeError("shapes differ")

    trainer = toy_trainer(tmp_path)
    monkeypatch.setattr(trainer, "criterion", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        scan_for_oom(trainer, {"most cuts": toy_batches(1)[0]})
