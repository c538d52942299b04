"""Several processes train what one would: gradients, statistics, files; and none is left over when one fails."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.train.distributed import (
    DistributedContext,
    launch_ranks,
    own_command,
    ranks_from_environment,
    start_ranks,
)
from tests.train.ranks import one_update

RANKS = 2


def run(task: str, folder: Path) -> int:
    return start_ranks(RANKS, [sys.executable, "-m", "tests.train.ranks", task, str(folder)])


@pytest.mark.parametrize("precisions", ["32", "2,1,sp", "admm", "gq"])
def test_gradients_are_those_of_one_process_with_all_utterances(tmp_path: Path, precisions: str) -> None:
    assert run(precisions, tmp_path) == 0
    one_update(DistributedContext(), tmp_path, tuple(precisions.split(",")))
    expected = torch.load(tmp_path / "update-0-of-1.pt")
    for rank in range(RANKS):
        found = torch.load(tmp_path / f"update-{rank}-of-{RANKS}.pt")
        # Metrics of the step, such as gq_moved, are no truer than the gradients: Adam's first step has their signs, and
        # where a gradient is near zero the order of the sum decides.
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-3, abs=1e-6)
        assert found["grads"].keys() == expected["grads"].keys()
        for name, grad in expected["grads"].items():
            torch.testing.assert_close(found["grads"][name], grad, rtol=1e-3, atol=1e-6, msg=name)


def test_ranks_stay_equal_and_only_one_writes(tmp_path: Path) -> None:
    assert run("train", tmp_path) == 0
    models = [torch.load(tmp_path / f"model-{rank}.pt") for rank in range(RANKS)]
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name
    assert sorted(p.name for p in tmp_path.glob("epoch-*.pt")) == ["epoch-1.pt", "epoch-2.pt"]
    assert not list(tmp_path.glob("bad-*"))


def test_one_failure_ends_all_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    start = time.monotonic()
    assert run("fail", tmp_path) == 7
    assert time.monotonic() - start < 60
    assert capsys.readouterr().err.endswith("rank 1 gives up\n")


def test_a_killed_rank_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("killed", tmp_path) == 128 + 9
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: process 1 of 2 was killed by SIGKILL: if memory ran out, lower --max-duration")


def test_a_module_is_started_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script by its path; a module, whose folder would hide packages of the same names, by `-m`."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "1"])
    assert own_command() == ["train.py", "--seed", "1"]
    spec = SimpleNamespace(name="pkg.tool", origin="/place/pkg/tool.py")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    assert own_command() == ["train.py", "--seed", "1"]
    monkeypatch.setattr(sys, "argv", [spec.origin, "--seed", "1"])
    assert own_command() == ["-m", "pkg.tool", "--seed", "1"]


def test_ranks_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks_from_environment() is None and launch_ranks(1) == DistributedContext()
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch_ranks(8) == DistributedContext(rank=9, world_size=16, local_rank=1)
    assert not launch_ranks(8).is_main


def test_senseless_number_of_ranks() -> None:
    with pytest.raises(UserError, match="world_size must be at least 1"):
        launch_ranks(0)


def test_draws_differ_between_ranks(tmp_path: Path) -> None:
    from tests.train.toy import toy_batches, toy_trainer

    [batch] = toy_batches(1, count=1)
    trainers = [toy_trainer(tmp_path, ranks=DistributedContext(rank, 2)) for rank in range(2)]
    draws = [trainer.rank_number(number) for number in range(5) for trainer in trainers]
    assert len(set(draws)) == len(draws)
    masked = [trainer.prepare(batch, 3).inputs for trainer in trainers]
    assert not torch.equal(*masked)
