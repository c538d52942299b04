"""Share work among processes: results in order, errors as they were raised, and never a wait without end.

Each item of work gets a process of its own. The executors of the standard library are not used, because one killed
process, or an interrupt, can leave them waiting for good: ProcessPoolExecutor before Python 3.12 where the work's
arguments are larger than a pipe (CPython's issue 94777), multiprocessing.Pool always.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from lowbit_k2.core.config import ConfigError
from lowbit_k2.errors import UserError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GLANCE = 0.01  # seconds
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


class WorkerTracebackError(Exception):
    """Shown as the cause of an error that a process raised: where in that process it was."""


@dataclass(frozen=True)
class _Yielded:
    value: Any


def check_num_jobs(num_jobs: int) -> None:
    """Refuse a number of processes below one.

    Raises:
      UserError: it is.
    """
    if num_jobs < 1:
        raise ConfigError("num_jobs", f"{num_jobs} is out of range: give 1 or more")


def in_fresh_processes(
    work: Callable[[_Item], _Result],
    items: Sequence[_Item],
    num_jobs: int,
    start_method: str = "spawn",
    on_done: Callable[[int], object] = lambda index: None,
    on_yield: Callable[[int, Any], object] = lambda index, value: None,
) -> list[_Result]:
    """`work(item)` for every item, each in a process that has done nothing before, `num_jobs` at a time.

    Processes still at work are ended when this is left by an error or an interrupt, which is the caller's to handle:
    they do not see Ctrl-C.

    Args:
      work: a function at the top of a module, or a `partial` of one; it, items and results are pickled.
      start_method: "spawn", or "fork", which is quicker, for callers without threads (those of torch count).
      on_done: called with the index of every item that is done, in no particular order.
      on_yield: if `work` is a generator, called with the index of the item and each value, as soon as it is there.

    Returns:
      Results in the order of `items`.

    Raises:
      UserError: num_jobs is not positive, or a process was killed. Whatever else `work` raises.
    """
    check_num_jobs(num_jobs)
    context = multiprocessing.get_context(start_method)
    waiting = deque(range(len(items)))
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    results: dict[int, _Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < num_jobs:
                    index = waiting.popleft()
                    # A file, since a pipe takes 64 kB only and starting would wait for the process to read the rest.
                    task = Path(folder) / str(index)
                    task.write_bytes(pickle.dumps((work, items[index])))
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_run, args=(os.getpid(), task, sender))
                    with _interrupts_held():
                        process.start()
                        running[receiver] = (index, process)
                    sender.close()
                for receiver in wait(list(running)):
                    index, process = running[receiver]
                    result = _receive(receiver, process, num_jobs)
                    if isinstance(result, _Yielded):
                        on_yield(index, result.value)
                        continue
                    results[index] = result
                    del running[receiver]
                    on_done(index)
        finally:
            for receiver, (_, process) in running.items():
                process.terminate()
                process.join()
                receiver.close()
    return [results[index] for index in range(len(items))]


def peak_memory() -> int:
    """Bytes of memory (resident set) that this process has had at most, or since `forget_peak`.

    Of `resource.getrusage` one does not know this: its figure begins with that of the process that started this one.
    """
    return next(1024 * int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))


def forget_peak() -> None:
    """Let `peak_memory` count anew, from what is in use now: freed memory goes back to the system first."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    _CLEAR_REFS.write_text("5")


def wait_for_rest(longest: float = 1.0) -> None:
    """Wait until this process's threads have left the CPUs, `longest` seconds at most.

    Threads of onnxruntime and of OpenMP look for more work for up to a tenth of a second after each call, on CPUs that
    what is timed next may need.
    """
    end = time.monotonic() + longest
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(_GLANCE)
        if time.process_time() - before < 0.1 * _GLANCE:
            return


def end_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends, however that is killed; at once if it has ended already.

    Linux alone has it; elsewhere nothing is done.

    Args:
      parent: id of the process that started this one.
    """
    try:
        done = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0
    except (OSError, AttributeError, TypeError):
        return
    if done and os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _run(parent: int, task: Path, sender: Connection) -> None:
    """What a process does: send `(result, error, where)`."""
    end_with_parent(parent)
    result = error = None
    where = ""
    try:
        work, item = pickle.loads(task.read_bytes())  # written by the caller a moment ago
        task.unlink()
        returned = work(item)
        result = _send_values(returned, sender) if isinstance(returned, Generator) else returned
    except Exception as caught:
        error, where = caught, traceback.format_exc()
    try:
        answer = pickle.dumps((result, error, where))
    except Exception:  # what cannot be pickled has no class of its own
        answer = pickle.dumps((None, RuntimeError(f"cannot be sent back: {result!r} {error!r}"[:500]), where))
    sender.send_bytes(answer)


def _send_values(values: Generator[Any, None, _Result], sender: Connection) -> _Result:
    """Send what a generator yields, give back what it returns."""
    while True:
        try:
            value = next(values)
        except StopIteration as end:
            return end.value
        sender.send_bytes(pickle.dumps((_Yielded(value), None, "")))


def _receive(receiver: Connection, process: BaseProcess, num_jobs: int) -> object:
    try:
        result, error, where = pickle.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        how = f"by signal {-process.exitcode}" if process.exitcode < 0 else f"with status {process.exitcode}"
        raise UserError(f"one of {num_jobs} processes ended early, {how}: if memory ran out, use fewer") from None
    if isinstance(result, _Yielded):
        return result
    process.join()
    receiver.close()
    if error is not None:
        raise error from WorkerTracebackError(f"\n{where}")
    return result


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C; a process that is started meanwhile never sees it."""
    resource_tracker.ensure_running()  # which would let interrupts through again when the first process starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
