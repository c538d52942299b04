"""Checkpoints that hold tensors and JSON only, and their averages.

A file is a dictionary {section: {name: tensor}} with the sections `model`, `optimizer`, `model_avg`, `teacher` (where
that is a running mean), `admm` (in its runs), and `meta`, one JSON string with the configurations and counters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit_k2.core.config import ConfigError
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.tensorfile import DamagedError, load_tensors, save_tensors

FORMAT = "lowbit_k2 checkpoint 1"
OPTIONAL_SECTIONS = ("teacher", "admm")  # not written where they are empty
SECTIONS = ("model", "optimizer", "model_avg", *OPTIONAL_SECTIONS)
Tensors = dict[str, Tensor]


@dataclass
class Checkpoint:
    """A checkpoint in memory."""

    model: Tensors
    meta: dict[str, Any]
    optimizer: Tensors = field(default_factory=dict)
    model_avg: Tensors = field(default_factory=dict)
    teacher: Tensors = field(default_factory=dict)
    admm: Tensors = field(default_factory=dict)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint under a temporary name and rename it.

    Raises:
      UserError: it cannot be written; whatever was there before is there still.
    """
    every = {name: getattr(checkpoint, name) for name in SECTIONS}
    sections = {name: tensors for name, tensors in every.items() if tensors or name not in OPTIONAL_SECTIONS}
    content = {"format": FORMAT, "meta": json.dumps(checkpoint.meta), **sections}
    try:
        with atomic_write(path) as temporary:
            save_tensors(temporary, content)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}): is the disk full? the run can go on later") from None


def load_checkpoint(path: str | Path, finite: bool = True) -> Checkpoint:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Args:
      finite: refuse NaN and infinity; a bad-model.pt may hold them.

    Raises:
      UserError: the file is missing, damaged, none of ours, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: train first, or choose the folder and epoch of a checkpoint")
    try:
        content = load_tensors(path)
    except DamagedError as error:
        raise UserError(f"{path} {error}: use another checkpoint") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of this version of lowbit_k2 (expected '{FORMAT}')")
    try:
        present = [name for name in SECTIONS if name in content or name not in OPTIONAL_SECTIONS]
        sections = {name: dict(content[name]) for name in present}
        found = Checkpoint(meta=dict(json.loads(content["meta"])), **sections)
        for name, tensor in (pair for tensors in sections.values() for pair in tensors.items()):
            if finite and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise UserError(f"{path}: {name} holds numbers that are not finite: use another checkpoint")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): use another checkpoint") from None
    return found


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's state as a flat dictionary of tensors, `<parameter index>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, s in state.items() for name, value in s.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put back what `optimizer_tensors` gave; the parameter groups are those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_model_state(model: nn.Module, state: Tensors, source: str | Path) -> None:
    """`load_state_dict` with one clear line when the checkpoint is of another configuration."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{source} does not fit the model that the flags describe: {first}") from None


class RunningAverage:
    """The mean of the model's state over the updates since the start, in float64, as icefall's `model_avg`.

    The state after update n weighs `average_period` in n. The mean over any stretch between two checkpoints
    follows from the two running means (`average_between`).
    """

    def __init__(self, model: nn.Module, average_period: int) -> None:
        self.average_period = average_period
        self.mean = to_float64(model.state_dict())

    @torch.no_grad()
    def step(self, model: nn.Module, update: int) -> None:
        """Call after each update, counted from 1."""
        if update % self.average_period:
            return
        weight = self.average_period / update
        for name, value in model.state_dict().items():
            mean = self.mean[name]
            if mean.is_floating_point():
                mean.mul_(1 - weight).add_(value.to(mean), alpha=weight)  # a resumed mean is on the CPU
            else:
                mean.copy_(value)


def to_float64(state: Tensors) -> Tensors:
    return {n: v.double() if v.is_floating_point() else v.clone() for n, v in state.items()}


def average_states(states: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """Weighted sum of states in float64, returned in the types of the last; integer tensors are the last one's."""
    assert len(states) == len(weights) > 0, (len(states), len(weights))
    result: Tensors = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            result[name] = last.clone()
            continue
        total = torch.zeros_like(last, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            total += weight * state[name].double()
        result[name] = total.float()
    return result


def average_checkpoints(paths: Sequence[Path]) -> Checkpoint:
    """The plain mean of the `model` sections of several checkpoints, with the last one's meta."""
    checkpoints = [load_checkpoint(path) for path in paths]
    states = [c.model for c in checkpoints]
    check_same_tensors(states, paths)
    mean = average_states(states, [1 / len(states)] * len(states))
    return Checkpoint(model=mean, meta=checkpoints[-1].meta)


def average_between(start: Path, end: Path) -> Checkpoint:
    """The mean over all updates after `start` up to `end`, from their running means."""
    first, last = load_checkpoint(start), load_checkpoint(end)
    check_same_tensors([first.model_avg, last.model_avg], [start, end])
    period = last.meta["average_period"]
    n_first, n_last = (c.meta["update"] // period * period for c in (first, last))
    if n_last <= n_first:
        raise ConfigError("avg", f"covers no averaged update: {end} has none after {start}; choose another")
    weights = [-n_first / (n_last - n_first), n_last / (n_last - n_first)]
    return Checkpoint(model=average_states([first.model_avg, last.model_avg], weights), meta=last.meta)


def check_same_tensors(states: Sequence[Tensors], paths: Sequence[Path]) -> None:
    """Names and shapes agree.

    Raises:
      UserError: the checkpoints come from different models.
    """
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    for shape, path in zip(shapes[1:], paths[1:], strict=True):
        if shape != shapes[0]:
            raise UserError(f"{path} holds other tensors than {paths[0]}: they come from different models")


def select_checkpoint(exp_dir: Path, epoch: int, iteration: int, avg: int, use_averaged_model: bool) -> Checkpoint:
    """What `--epoch/--iter --avg --use-averaged-model` mean.

    `--iter N` takes `checkpoint-N.pt` and the avg-1 checkpoints before it; otherwise `epoch-E.pt` and the avg-1
    epochs before it. `--use-averaged-model` gives the mean over all updates of that stretch instead of the mean of
    its ends; when the stretch goes back to the first one, the mean since the start. `--epoch 0` is the newest one.
    """
    if not exp_dir.is_dir():
        raise ConfigError("exp_dir", f"{exp_dir} does not exist: give the folder that train.py wrote")
    if iteration > 0:
        numbers = [n for n in numbered(exp_dir, "checkpoint") if n <= iteration]
        name, number = "checkpoint", iteration
    else:
        numbers = numbered(exp_dir, "epoch")
        number = epoch or (numbers[-1] if numbers else 0)
        name, numbers = "epoch", [n for n in numbers if n <= number]
    if number not in numbers:
        raise UserError(f"{exp_dir / f'{name}-{number}.pt'} does not exist: see what {exp_dir} holds")
    if avg < 1 or avg > len(numbers):
        raise ConfigError("avg", f"{avg} is impossible: {exp_dir} holds {len(numbers)} {name}s up to {number}")
    paths = [exp_dir / f"{name}-{n}.pt" for n in numbers]
    if not use_averaged_model or avg == 1:
        return average_checkpoints(paths[-avg:])
    if avg == len(paths):
        last = load_checkpoint(paths[-1])
        return Checkpoint(model=average_states([last.model_avg], [1.0]), meta=last.meta)
    return average_between(paths[-avg - 1], paths[-1])


def numbered(exp_dir: Path, name: str) -> list[int]:
    """Sorted N of the files `<name>-N.pt`."""
    matches = (re.fullmatch(rf"{name}-(\d+)\.pt", path.name) for path in exp_dir.glob(f"{name}-*.pt"))
    return sorted(int(match.group(1)) for match in matches if match)
