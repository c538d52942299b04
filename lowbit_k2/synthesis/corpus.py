"""Make a synthetic corpus: many processes, one progress bar, and a folder that appears only when it is whole."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from lowbit_k2.core.config import ConfigError
from lowbit_k2.errors import UserError
from lowbit_k2.locks import exclusive
from lowbit_k2.processes import in_fresh_processes
from lowbit_k2.progress import progress_bar

README_NAME = "README.TXT"
_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


def synthesize_all(
    work: Callable[[_Item], _Result], items: Sequence[_Item], num_jobs: int, sizes: Sequence[int], unit: str = "utt"
) -> list[_Result]:
    """`work(item)` for every item by `in_fresh_processes`, with a progress bar.

    espeak-ng's output depends on all that it said before in its process, so results of fresh processes do not
    depend on the number of jobs.

    Args:
      sizes: by how many `unit`s each item moves the progress bar.

    Raises:
      UserError: num_jobs is not positive, a process was killed, or `work` raised one.
    """
    with progress_bar(desc="Synthesizing", total=sum(sizes), unit=unit) as progress:
        # A forked child starts without a loaded espeak-ng, and a tenth of a second sooner than a spawned one.
        return in_fresh_processes(work, items, num_jobs, "fork", lambda index: progress.update(sizes[index]))


def corpus_parser(doc: str, default_hours: float, default_seed: int) -> argparse.ArgumentParser:
    """The flags of a script that makes a corpus; the first line of `doc` describes it."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True, help="the corpus will be here")
    parser.add_argument("--hours", type=float, default=default_hours, help="about so many hours (0.01 to 20)")
    parser.add_argument("--seed", type=int, default=default_seed, help="of texts, prosody and noise")
    parser.add_argument("--num-jobs", type=int, default=2, help="processes at a time")
    return parser


def check_hours(hours: float) -> None:
    """Refuse a size that makes no corpus, or one that fills a disk.

    Raises:
      UserError: hours are not between 0.01 and 20.
    """
    if not 0.01 <= hours <= 20:
        raise ConfigError("hours", f"{hours:g} is out of range: give 0.01 to 20")


def holds_corpus(folder: Path, readme: str) -> bool:
    """True where the very corpus whose README is `readme` is there already, False where nothing is.

    Raises:
      UserError: something else is there.
    """
    if not folder.exists():
        return False
    path = folder / README_NAME
    if path.is_file() and path.read_text(encoding="utf-8") == readme:
        return True
    raise UserError(f"{folder} holds another corpus: remove it, or choose another folder")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; it gets that name at the end, or goes away on an error.

    Raises:
      UserError: another process is making the same folder.
    """
    partial_dir = folder.with_name(f".{folder.name}.partial")
    with exclusive(folder.with_name(f".{folder.name}.lock")):
        shutil.rmtree(partial_dir, ignore_errors=True)  # left by a killed run
        partial_dir.mkdir(parents=True)
        try:
            yield partial_dir
            partial_dir.rename(folder)
        finally:
            shutil.rmtree(partial_dir, ignore_errors=True)
