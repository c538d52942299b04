from __future__ import annotations

import pytest

from lowbit_k2.recipe.flags import wants_mini


def test_mini_is_found_among_other_flags() -> None:
    assert wants_mini(["--exp-dir", "x", "--mini", "true", "--precision", "1", "2"])
    assert wants_mini(["--mini=yes"])
    assert not wants_mini(["--mini", "false"])
    assert not wants_mini(["--exp-dir", "x"])
    assert not wants_mini(["--mini-libri", "true"])


def test_mini_takes_true_or_false(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wants_mini(["--mini", "perhaps"])
    assert "neither true nor false" in capsys.readouterr().err
