"""Every number that a script takes, in whole runs of the script: it works, or one line says what is wrong.

A run that has no fault but is asked for very much (a million epochs) is stopped after a while; it must be at work, in
bounded memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lowbit_k2.recipe.decoding_flags import add_decoding_flags, add_export_flags
from lowbit_k2.recipe.training_flags import training_parser
from tests.attacks.test_numbers import TEXTS
from tests.attacks.trials import count_trial, factor
from tests.egs.scripts import AN4, Flag, Run, call

pytestmark = pytest.mark.attack

SECONDS = 30
MAX_BYTES = 3 * 2**30  # over what the process has before
# what may go on for as long as it was asked to; all others end by themselves
ENDLESS = {"--num-epochs"}


def number_flags(add: Callable[[argparse.ArgumentParser], object] | argparse.ArgumentParser) -> list[str]:
    """Flags of a script that take one value that is read by a function."""
    parser = add if isinstance(add, argparse.ArgumentParser) else argparse.ArgumentParser()
    if parser is not add:
        add(parser)
    return [
        action.option_strings[-1]
        for action in parser._actions
        if action.option_strings and action.nargs is None and action.choices is None and action.type not in (None, Path)
    ]


def in_a_child(script: Path, flags: list[Flag]) -> Run | str:
    """What the script did, as a process with a bound on its memory; text where it raised, hung or died.

    The process is forked off one that has loaded the libraries and used none: a pool of threads that k2 has at work
    does not survive a fork, and whoever waits for it waits for ever.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.egs.scripts", "lowbit_k2.asr.decoding", "lowbit_k2.asr.training"])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(script, flags, send))
    child.start()
    send.close()
    try:
        if not receive.poll(SECONDS):
            return "still running"
        return receive.recv()
    except EOFError:
        child.join()
        return f"died with status {child.exitcode}"
    finally:
        child.kill()
        child.join()


def _run(script: Path, flags: list[Flag], send: Connection) -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MAX_BYTES,) * 2)
    try:
        send.send(call(script, *flags))
    except BaseException:
        send.send(traceback.format_exc())


def fault(flag: str, outcome: Run | str) -> str:
    """What is wrong with an outcome, "" for nothing."""
    if isinstance(outcome, str):
        return "" if outcome == "still running" and flag in ENDLESS else outcome
    if outcome.status == 0:
        return ""
    lines = [line for line in outcome.err.splitlines() if "error: " in line]  # of decode.py one per utterance
    if outcome.status in (1, 2) and lines and "Traceback" not in outcome.err:
        return ""
    return f"status {outcome.status}: {outcome.err}"


def attack(script: Path, flags: list[str], base: list[Flag], number: int, seed: int) -> None:
    """Draw flags and values, run, and count; by hand often enough to try each."""
    pairs = [(flag, text) for flag in flags for text in TEXTS]
    draw, faults = random.Random(seed), []
    for flag, text in draw.sample(pairs, min(len(pairs), number * factor())):
        count_trial()
        found = fault(flag, in_a_child(script, [*base, f"{flag}={text}"]))
        if found:
            faults.append(f"{script.name} {flag}={text}: {found}")
            print(faults[-1], flush=True)
    assert not faults, "\n".join(faults)


def test_training(an4_training: list[Flag], tmp_path: Path) -> None:
    flags = number_flags(training_parser(None))
    # --world-size starts processes of its own, which ask again for as much memory
    base = [*an4_training, "--exp-dir", tmp_path / "new", "--resume", "true", "--num-epochs", 1, "--tensorboard=false"]
    attack(AN4 / "train.py", [flag for flag in flags if flag != "--world-size"], base, number=8, seed=1)


@pytest.mark.parametrize("method", ["ctc-greedy-search", pytest.param("1best,nbest", marks=pytest.mark.k2)])
def test_decoding(an4_data: Path, talkative_exp: Path, method: str) -> None:
    data: list[Flag] = ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_char"]
    base = ["--exp-dir", talkative_exp, "--epoch", 1, "--precision", 1, "--decoding-method", method, *data, "--quiet"]
    attack(AN4 / "decode.py", number_flags(add_decoding_flags), base, number=6, seed=2)


def test_export(talkative_exp: Path, tmp_path: Path) -> None:
    base = ["--exp-dir", talkative_exp, "--epoch", 1, "--precision", 1, "--output", tmp_path / "1bit.safetensors"]
    attack(AN4 / "export.py", number_flags(add_export_flags), base, number=4, seed=3)


def test_a_hang_a_death_and_a_traceback_are_faults(tmp_path: Path) -> None:
    """The test itself must be able to fail."""
    (tmp_path / "raises.py").write_text("raise KeyError('x')")
    (tmp_path / "dies.py").write_text("import os; os._exit(3)")
    (tmp_path / "greedy.py").write_text("b'x' * 2**33")
    assert "KeyError" in fault("--x", in_a_child(tmp_path / "raises.py", []))
    assert fault("--x", in_a_child(tmp_path / "dies.py", [])) == "died with status 3"
    assert "MemoryError" in fault("--x", in_a_child(tmp_path / "greedy.py", []))
    assert fault("--x", "still running") and not fault("--num-epochs", "still running")
