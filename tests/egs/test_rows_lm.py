"""The table of language models: its flags, its test of significance, and that the page has not drifted."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import write_json
from lowbit_k2.quant import Allocation
from lowbit_k2.recipe.lm_flags import lm_training_parser, read_lm_training_flags
from tests.egs.scripts import LIBRISPEECH, call, local_module

SCRIPT = LIBRISPEECH / "local/rows_lm.py"


@pytest.fixture
def rows() -> ModuleType:
    return local_module(SCRIPT.parent, SCRIPT.stem)


def table(rows: ModuleType, root: Path):
    texts = ["--train-text", "t.gz", "--dev", "d.gz", "--test", "e.gz"]
    more = ["--more", "--num-threads 1", "--more-later", "--train-text third.gz"]
    return rows.Table(rows.get_parser().parse_args(["make", *texts, "--exp-root", str(root), *more]))


def test_the_flags_of_every_row_are_those_of_training(
    rows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, commands = table(rows, tmp_path), []
    monkeypatch.setattr(rows, "run_script", lambda *command: commands.append(list(map(str, command))))
    monkeypatch.setattr(made, "score", lambda packed: {"words": [], "losses": []})
    monkeypatch.setattr(made, "choose", lambda measure: tmp_path / f"mixed-{measure}.json")
    Allocation.uniform(4).save(tmp_path / "mixed-kl.json")
    for name in ("float", "float-on", "bits-2", "admm-1", "mixed-kl", "cotrain-1", "taught-1"):
        commands.clear()
        made.make(name)
        (trained, *flags), (exported, *written) = commands
        config = read_lm_training_flags(lm_training_parser(None).parse_args(flags))
        first = name == "float"
        assert (trained, exported) == ("train_lm.py", "export.py") and config.loop.num_epochs == (9 if first else 3)
        assert config.data.train_text == (Path("t.gz" if first else "third.gz"),)
        assert (config.run.init_from is None) == first
        assert ("--teacher" in flags) == (name == "taught-1")
        assert written[written.index("--precision") + 1] == rows.ROWS[name].precision
    made.make("float")
    assert len(commands) == 2, "a row that is done is not made again"


def test_rows_are_tested_against_float_trained_on(rows: ModuleType, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    words = random.integers(2, 30, size=400)
    losses = words * random.gamma(9.0, 0.5, size=400)
    worse = losses + words * random.normal(0.02, 0.03, size=400)
    made = table(rows, tmp_path)
    for name, own in (("float", losses), ("float-on", losses), ("bits-2", worse), ("bits-8", losses[::-1])):
        made.folder(name).mkdir(parents=True)
        numbers = {"bytes": 400 if "float" in name else 100, "dev": 10.0, "test": 11.0, "ms_per_word": 0.1, "bits": "2"}
        spoken = words[::-1] if name == "bits-8" else words
        write_json(made.result(name), numbers | {"losses": own.tolist(), "words": spoken.tolist()})
    with pytest.raises(UserError, match="scored on different test texts"):
        made.summary()
    made.result("bits-8").unlink()
    summary = made.summary()
    found = summary["bits-2"]
    assert found["relative"] == pytest.approx(math.exp((worse.sum() - losses.sum()) / words.sum()) - 1)
    low, high = found["interval"]
    # the same interval by the normal distribution
    deviation = np.std((worse - losses) - words * (worse - losses).sum() / words.sum()) * math.sqrt(400) / words.sum()
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.05)
    assert low < found["relative"] < high and found["p"] < 0.01
    lines = rows.format_rows({"small": dict(reversed(summary.items()))}).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| small", name] for name in ("float", "float-on", "bits-2")
    ]
    assert f"| {found['relative']:+.1%} |" in lines[-1] and "| 4.0 |" in lines[-1]


def test_what_is_refused(tmp_path: Path) -> None:
    assert "--train-text is needed by make" in call(SCRIPT, "make").error()
    texts = ["--train-text", "t", "--dev", "d", "--test", "e"]
    assert "--only nobody is no row: choose of float" in call(SCRIPT, "make", *texts, "--only", "nobody").error()
    assert "has no row float of small yet: run make" in call(SCRIPT, "table", "--exp-root", tmp_path).error()


def test_the_table_of_the_results_has_not_drifted(
    rows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(SCRIPT, "results", "--check", "true").good()
    text, page = rows.PAGE.read_text(), tmp_path / "RESULTS.md"
    page.write_text(text.replace("| float-on | 32 |", "| float-on | 31 |"))
    with pytest.raises(UserError, match="other tables than"):
        rows.write_results(page, check=True)
    rows.write_results(page, check=False)
    assert page.read_text() == text
