"""Shared fixtures: where the real speech lies, and the rule that k2 may be missing in the modern lane only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lowbit_k2.launch import choose_mkl_kernels
from tests.attacks.trials import factor, summary

# As the scripts do, before torch is loaded: what runs in this process and what it starts agree to the last bit.
choose_mkl_kernels(os.environ)
# Work this small gains nothing by threads, and on a busy machine threads that wait for each other cost it twentyfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Checks of the examples' making, not of the code: they fail by chance, and on a machine that is busy.
CHANCE = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
settings.register_profile("suite", deadline=None, suppress_health_check=CHANCE)
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent
IS_FULL_LANE = sys.version_info[:2] == (3, 10)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real speech: the folder named by LOWBIT_K2_DATA, default ../shared/data beside the repository."""
    path = Path(os.environ.get("LOWBIT_K2_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test speech at {path}: set LOWBIT_K2_DATA")
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked k2 outside the full lane when k2 is absent; in the full lane they must run."""
    from lowbit_k2.k2_compat import has_k2

    if has_k2() or IS_FULL_LANE:
        return
    for item in items:
        if item.get_closest_marker("k2"):
            item.add_marker(pytest.mark.skip(reason="k2 is not installed (modern lane)"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`attack(repeat=True)`: as often as LOWBIT_K2_TRIALS says."""
    mark = metafunc.definition.get_closest_marker("attack")
    if mark is not None and mark.kwargs.get("repeat") and factor() > 1:
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(factor()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many k2 tests ran and how many did not: a lane without k2 must not hide what it leaves out."""

    def marked_k2(*outcomes: str) -> int:
        reports = [report for outcome in outcomes for report in terminalreporter.stats.get(outcome, [])]
        return len({report.nodeid for report in reports if "k2" in getattr(report, "keywords", {})})

    def attacks(*outcomes: str) -> set[str]:
        reports = [report for outcome in outcomes for report in terminalreporter.stats.get(outcome, [])]
        return {report.nodeid for report in reports if "attack" in getattr(report, "keywords", {})}

    for line in summary(attacks("passed"), attacks("failed", "error")):
        terminalreporter.write_line(line)
    ran, skipped = marked_k2("passed", "failed", "error"), marked_k2("skipped")
    terminalreporter.write_line(f"k2 tests: {ran} ran, {skipped} skipped")
