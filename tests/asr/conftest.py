"""What all tests of recognisers share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """A training sets up the root logger and the arithmetic of small numbers."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    torch.set_flush_denormal(False)
