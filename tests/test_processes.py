"""Work in processes: order, errors, and no wait without end when a process dies or the user presses Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.processes import forget_peak, in_fresh_processes, peak_memory

ROOT = Path(__file__).resolve().parents[1]
LARGE = b"x" * 1_000_000  # more than a pipe holds
METHODS = ("spawn", "fork")

_calls = 0


def count_calls(item: bytes) -> tuple[bytes, int, int]:
    """The item, how often this process was called, and its id."""
    global _calls
    _calls += 1
    return item, _calls, os.getpid()


def take_a_second(item: int) -> tuple[float, float]:
    """When this began and ended."""
    start = time.monotonic()
    time.sleep(1)
    return start, time.monotonic()


def fail_at(bad: int, item: int) -> int:
    if item == bad:
        raise KeyError(f"item {item}")
    time.sleep(60)
    return item


def answer_with(item: object) -> object:
    if item == "error":
        raise UnpicklableError(lambda: 0)
    return lambda: 0


class UnpicklableError(Exception):
    """An error that cannot be sent to another process."""


def die(how: int, folder: Path, item: tuple[int, bytes]) -> int:
    """The second process ends without a word, at once; the others would take a minute."""
    (folder / str(os.getpid())).touch()
    if item[0] == 1:
        if how < 0:
            os.kill(os.getpid(), -how)
        os._exit(how)
    time.sleep(60)
    return item[0]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_jobs", [1, 3])
def test_results_are_in_order_and_processes_fresh(num_jobs: int, method: str) -> None:
    items, done = [LARGE, b"a", b"b", b"c"], []
    results = in_fresh_processes(count_calls, items, num_jobs, method, done.append)
    assert [item for item, _, _ in results] == items
    assert {calls for _, calls, _ in results} == {1} and len({process for _, _, process in results}) == 4
    assert (done if num_jobs == 1 else sorted(done)) == [0, 1, 2, 3]


def test_as_many_at_a_time_as_wanted() -> None:
    times = in_fresh_processes(take_a_second, [0, 1, 2], 2, "fork")
    overlaps = [sum(start <= moment < end for start, end in times) for moment, _ in times]
    assert max(overlaps) == 2


@pytest.mark.parametrize("method", METHODS)
def test_an_error_comes_through_with_its_place_and_ends_the_others(method: str) -> None:
    start = time.monotonic()
    with pytest.raises(KeyError, match="item 1") as caught:
        in_fresh_processes(partial(fail_at, 1), [0, 1, 2], 2, method)
    assert "in fail_at" in str(caught.value.__cause__)
    assert time.monotonic() - start < 30


def test_what_cannot_be_sent_is_an_error_too() -> None:
    for item in ("error", "result"):
        with pytest.raises(RuntimeError, match="cannot be sent back"):
            in_fresh_processes(answer_with, [item], 1, "fork")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("how", "message"), [(-signal.SIGKILL, "by signal 9"), (3, "with status 3")])
def test_a_process_that_dies(how: int, message: str, method: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=f"one of 3 processes ended early, {message}: .* use fewer"):
        in_fresh_processes(partial(die, how, tmp_path), [(i, LARGE) for i in range(4)], 3, method)
    assert time.monotonic() - start < 30
    assert not [path.name for path in tmp_path.iterdir() if is_running(int(path.name))]


def test_no_processes() -> None:
    assert in_fresh_processes(count_calls, [], 2) == []
    with pytest.raises(UserError, match="num_jobs 0"):
        in_fresh_processes(count_calls, [b"a"], 0)


PROGRAM = """
from functools import partial
from pathlib import Path
from lowbit_k2.errors import run_main
from lowbit_k2.processes import forget_peak, in_fresh_processes, peak_memory
from tests.test_processes import LARGE, die
if __name__ == "__main__":
    items = [(0, LARGE), (2, LARGE), (3, LARGE)]
    run_main(lambda: in_fresh_processes(partial(die, 0, Path("{folder}")), items, 2, "{method}"))
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("delay", [None, 0.0, 0.1, 0.5])
def test_ctrl_c(method: str, delay: float | None, tmp_path: Path) -> None:
    """As a terminal does it, to all processes: while they work (None), or so long after the first one's start."""
    script, folder = tmp_path / "script.py", tmp_path / "started"
    folder.mkdir()
    script.write_text(PROGRAM.format(folder=folder, method=method))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    program = [sys.executable, str(script)]
    with subprocess.Popen(
        program, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 60
            wanted = 1 if delay is not None else 2
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            # The tracker of multiprocessing's resources is the first child.
            while (len(list(folder.iterdir())) if delay is None else len(children.read_text().split()) - 1) < wanted:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(delay or 0)
            os.killpg(process.pid, signal.SIGINT)
            _, said = process.communicate(timeout=20)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, said) == (130, "error: interrupted\n")
    assert not [path.name for path in folder.iterdir() if is_running(int(path.name))]
    assert not list(tmp_path.glob("tmp*")), "a temporary folder is left"


def count_down(item: int):
    for value in range(item, 0, -1):
        yield value, LARGE
    if item == 3:
        raise UserError("three is too many")
    return -item


@pytest.mark.parametrize("method", METHODS)
def test_what_a_generator_yields_comes_at_once(method: str) -> None:
    seen: list[tuple[int, int]] = []
    results = in_fresh_processes(
        count_down, [2, 1], 2, method, on_yield=lambda index, value: seen.append((index, value[0]))
    )
    assert results == [-2, -1] and [value for index, value in seen if index == 0] == [2, 1]
    assert [value for index, value in seen if index == 1] == [1]
    with pytest.raises(UserError, match="three is too many"):
        in_fresh_processes(count_down, [3], 1, method, on_yield=lambda index, value: seen.append((9, value[0])))
    assert [value for index, value in seen if index == 9] == [3, 2, 1]


ORPHANS = """
import os, sys, time
from functools import partial
from pathlib import Path
from lowbit_k2.processes import forget_peak, in_fresh_processes, peak_memory
from lowbit_k2.train.distributed import launch_ranks
from tests.test_processes import die
if __name__ == "__main__":
    if "{method}" == "ranks":
        launch_ranks(2)
        (Path("{folder}") / str(os.getpid())).touch()
        time.sleep(60)
    else:
        in_fresh_processes(partial(die, 0, Path("{folder}")), [(0, b""), (2, b"")], 2, "{method}")
"""


@pytest.mark.attack(repeat=True)
@pytest.mark.parametrize("method", [*METHODS, "ranks"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nobody_works_on_when_the_parent_is_killed(method: str, how: signal.Signals, tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "started"
    folder.mkdir()
    script.write_text(ORPHANS.format(folder=folder, method=method))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script)], env=environment, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 60
            while len(list(folder.iterdir())) < 2:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(how)
            process.wait(timeout=20)
            while any(is_running(int(path.name)) for path in folder.iterdir()):
                assert time.monotonic() < deadline, "orphans"
                time.sleep(0.01)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_a_process_whose_parent_has_ended_already() -> None:
    program = (
        "import os; from lowbit_k2.processes import end_with_parent; end_with_parent(os.getpid()); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_rest_is_waited_for_and_not_for_ever() -> None:
    """A program of its own, whose other thread turns in circles: nothing else uses its time."""
    program = (
        "import sys, threading, time; from lowbit_k2.processes import wait_for_rest\n"
        "def spin():\n    while time.process_time() < until: pass\n"
        "until = time.process_time() + float(sys.argv[1])\n"
        "thread = threading.Thread(target=spin, daemon=True); thread.start()\n"
        "start = time.monotonic(); wait_for_rest(float(sys.argv[2])); taken = time.monotonic() - start\n"
        "print(thread.is_alive(), taken)"
    )

    def run(*args: str) -> list[str]:
        command = [sys.executable, "-c", program, *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()

    # A busy machine may keep the thread from its CPU for as long as one glance takes: one good run of five is enough.
    assert any(run("0.3", "60")[0] == "False" for _ in range(5))
    alive, taken = run("600", "0.2")
    assert (alive, float(taken) < 30) == ("True", True)


def test_peak_memory_is_of_this_process_and_can_be_forgotten() -> None:
    held = b"x" * 80_000_000
    code = "from lowbit_k2.processes import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 5_000_000 < int(child.stdout) < len(held), "what the parent holds does not count"
    assert peak_memory() > len(held)
    del held
    forget_peak()
    before = peak_memory()
    _ = b"y" * 80_000_000
    assert 70_000_000 < peak_memory() - before < 90_000_000  # what lay free may have been a part of it
