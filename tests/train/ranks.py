"""What one rank of the tests does: `python -m tests.train.ranks TASK FOLDER`, started once per rank."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from lowbit_k2.train.admm import AdmmConfig
from lowbit_k2.train.distributed import DistributedContext, process_group, ranks_from_environment
from lowbit_k2.train.drawing import DrawingConfig
from lowbit_k2.train.gq import GqConfig
from lowbit_k2.train.trainer import LoopConfig, Trainer
from lowbit_k2.train.update import update
from tests.train.toy import run_epochs, toy_batches, toy_trainer

DRAWINGS = {  # in the place of precisions: 2 bits by these
    "admm": DrawingConfig(admm=AdmmConfig(every=1, gamma=0.1)),
    "gq": DrawingConfig("gq", gq=GqConfig(gq_every=1, gq_scale="absmax")),
}
LOOP = LoopConfig(num_epochs=2, average_period=2, save_every_n=2, tensorboard=False)


def split(batch, rank: int):
    """The utterance of a batch of two that a rank gets."""
    part = slice(rank, rank + 1)
    names = {"texts": batch.texts[part], "ids": batch.ids[part]}
    return replace(batch, inputs=batch.inputs[part], input_lens=batch.input_lens[part], **names)


def one_update(ranks: DistributedContext, exp_dir: Path, precisions: tuple[str, ...]) -> Trainer:
    """A trainer after an update on its half of a batch, without dropout and augmentation."""
    drawing = DRAWINGS.get(precisions[0])
    precisions = ("2",) if drawing else precisions
    trainer = toy_trainer(exp_dir, precisions, loop=LOOP, augment=None, ranks=ranks, drawing=drawing)
    trainer.model.eval()
    [batch] = toy_batches(1, count=1)
    batches = [split(batch, ranks.rank)] if ranks.world_size > 1 else [batch]
    metrics = update(trainer, batches)
    result = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    torch.save({"grads": result, "metrics": metrics}, exp_dir / f"update-{ranks.rank}-of-{ranks.world_size}.pt")
    return trainer


def train(ranks: DistributedContext, exp_dir: Path) -> None:
    """Two epochs with dropout and augmentation; the model of every rank is saved."""
    trainer = toy_trainer(exp_dir, loop=LOOP, ranks=ranks)
    run_epochs(trainer, 2)
    torch.save(trainer.model.state_dict(), exp_dir / f"model-{ranks.rank}.pt")


def main() -> None:
    task, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    ranks = ranks_from_environment()
    if task == "fail" and ranks.rank == 1:
        print("rank 1 gives up", file=sys.stderr)
        sys.exit(7)
    if task == "killed" and ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with process_group(ranks):
        if task == "train":
            train(ranks, folder)
        elif task in ("fail", "killed"):
            ranks.sum_tensors([torch.ones(1)])  # waits for the rank that has left
        else:
            one_update(ranks, folder, tuple(task.split(",")))


if __name__ == "__main__":
    main()
