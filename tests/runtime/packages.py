"""What tests of the runtime need beside the shared environment."""

from __future__ import annotations

import importlib.util

import pytest

needs_fbank = pytest.mark.skipif(
    importlib.util.find_spec("kaldi_native_fbank") is None, reason="kaldi-native-fbank is not installed"
)
