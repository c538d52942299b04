"""Progress bars: on a terminal alone."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from lowbit_k2.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


CASES = [(Terminal, False, True), (Terminal, True, False), (io.StringIO, False, False)]


@pytest.mark.parametrize("screen, quiet, shown", CASES)
def test_a_log_gets_no_bar(
    screen: type[io.StringIO], quiet: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", screen())
    assert list(progress_bar(range(3), "counting", quiet=quiet)) == [0, 1, 2]
    with progress_bar(desc="by hand", total=2, quiet=quiet) as bar:
        bar.update(2)
    assert ("counting" in sys.stderr.getvalue()) == shown == ("by hand" in sys.stderr.getvalue())


def test_all_bars_come_from_here(repo_root: Path) -> None:
    places = [*repo_root.glob("lowbit_k2/**/*.py"), *repo_root.glob("egs/*/*.py"), *repo_root.glob("egs/*/local/*.py")]
    own = [path.name for path in places if "tqdm" in path.read_text(encoding="utf-8") and path.name != "progress.py"]
    assert own == []
