"""Data-parallel training: one process per GPU, or per group of CPU cores, which exchange gradients once per update.

Losses are divided by the valid frames of all ranks, so that gradients add up to those of one process with all the
batches. Everything is summed in one message after the last branch's backward; no wrapper stands around the model, and
parameters that an update does not touch (the alphas of other precisions) need no special care.

`--world-size N` starts N processes on one machine. For several machines start one process per GPU with `torchrun`,
whose environment variables are the same.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lowbit_k2.core.config import ConfigError
from lowbit_k2.processes import end_with_parent

POLL_SECONDS = 0.2
PARENT = "LOWBIT_K2_LAUNCHER"  # the id of the process that `start_ranks` runs in


@dataclass(frozen=True)
class DistributedContext:
    """Which of how many processes this is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among the processes of this machine; the number of its GPU

    @property
    def is_main(self) -> bool:
        """The one that logs, validates and writes."""
        return self.rank == 0

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks; one message for each type."""
        if self.world_size == 1:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            chosen = [t for t in tensors if t.dtype == dtype]
            message = torch.cat([t.reshape(-1) for t in chosen])
            dist.all_reduce(message)
            for tensor, part in zip(chosen, message.split([t.numel() for t in chosen]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_metrics(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Sum of each number over all ranks, which must name the same numbers."""
        sums = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        self.sum_tensors([sums])
        return dict(zip(values, sums.tolist(), strict=True))


def ranks_from_environment() -> DistributedContext | None:
    """What `start_ranks` or torchrun has set, None in a process that was started by hand."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    rank = int(os.environ["RANK"])
    return DistributedContext(rank, int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", rank)))


@contextmanager
def process_group(ranks: DistributedContext) -> Iterator[DistributedContext]:
    """Connect the ranks for the length of the body: NCCL where there are GPUs, Gloo elsewhere.

    Raises:
      ConfigError: more ranks on this machine than it has GPUs.
    """
    if ranks.world_size == 1:
        yield ranks
        return
    if torch.cuda.is_available():
        if ranks.local_rank >= torch.cuda.device_count():
            raise ConfigError("world_size", f"{ranks.world_size}: this machine has {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(ranks.local_rank)
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", rank=ranks.rank, world_size=ranks.world_size
    )
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def start_ranks(world_size: int, command: Sequence[str]) -> int:
    """Run the command once per rank and wait; when one fails, the others are stopped.

    What ranks but the first say on standard error is held back, and shown if they fail: lines of several processes at
    once would run into each other.

    Returns:
      0, or the exit status of the first rank that failed; 128 and the signal where one was killed, which is said.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(max(1, (os.cpu_count() or 1) // world_size))
    common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common[PARENT] = str(os.getpid())
    common |= {} if torch.cuda.is_available() else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    with ExitStack() as files:
        errors = [None, *(files.enter_context(tempfile.TemporaryFile()) for _ in range(1, world_size))]
        processes = [
            subprocess.Popen(
                command, env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=error
            )
            for rank, error in enumerate(errors)
        ]
        try:
            codes = wait(processes)
        finally:
            stop(processes)
        for code, error in zip(codes, errors, strict=True):
            if code and error is not None:
                error.seek(0)
                sys.stderr.write(error.read().decode(errors="replace"))
        killed = [(rank, -code) for rank, code in enumerate(codes) if code is not None and code < 0]
        for rank, number in killed:
            how = signal.Signals(number).name
            remedy = "if memory ran out, lower --max-duration; resume to go on"
            sys.stderr.write(f"error: process {rank} of {world_size} was killed by {how}: {remedy}\n")
        return 128 + killed[0][1] if killed else next((code for code in codes if code), 0)


def wait(processes: Sequence[subprocess.Popen]) -> list[int | None]:
    """Exit statuses when all processes have ended or one has failed."""
    while True:
        codes = [process.poll() for process in processes]
        if any(codes) or None not in codes:
            return codes
        time.sleep(POLL_SECONDS)


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """Terminate what still runs, and wait for it."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def own_command() -> list[str]:
    """What Python was asked to run: a script, or a module by `-m`, whose folder must not come before the packages."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.origin == sys.argv[0]:
        return ["-m", spec.name, *sys.argv[1:]]
    return list(sys.argv)


def launch_ranks(world_size: int) -> DistributedContext:
    """This process's rank; in the process that the user started, run all ranks and exit with their status.

    Raises:
      ConfigError: a number of ranks that makes no sense.
    """
    if world_size < 1:
        raise ConfigError("world_size", f"must be at least 1, not {world_size}")
    ranks = ranks_from_environment()
    if PARENT in os.environ:
        end_with_parent(int(os.environ.pop(PARENT)))
    if ranks is None and world_size > 1:
        sys.exit(start_ranks(world_size, [sys.executable, *own_command()]))
    return ranks or DistributedContext()
