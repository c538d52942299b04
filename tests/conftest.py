"""Shared fixtures: where the real speech lies, and the rule that k2 may be missing in the modern lane only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FULL_LANE = sys.version_info[:2] == (3, 10)


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

    if has_k2() or FULL_LANE:
        return
    for item in items:
        if item.get_closest_marker("k2"):
            item.add_marker(pytest.mark.skip(reason="k2 is not installed (modern lane)"))
