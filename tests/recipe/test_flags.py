from __future__ import annotations

from pathlib import Path

import pytest

from lowbit_k2.quant import STATISTICS
from lowbit_k2.recipe.flags import wants_mini
from lowbit_k2.recipe.training_flags import read_training_flags, training_parser


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


def test_what_a_plugin_registers_is_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from lowbit_k2.quant import STATISTICS, register_statistic\n"
        "known = STATISTICS['running-absmax']\n"
        "register_statistic('mine', known.measure, known.scale)\n"
    )
    with pytest.raises(SystemExit):
        training_parser(None).parse_args(["--scale", "mine"])
    monkeypatch.setattr("sys.argv", ["train.py", "--plugin", str(path)])
    try:
        config = read_training_flags(training_parser(None).parse_args(["--plugin", str(path), "--scale", "mine"]))
        assert config.quant_config().schemes["attention"].scale == "mine"
    finally:
        STATISTICS.pop("mine", None)
