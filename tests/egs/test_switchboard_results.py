"""Switchboard's RESULTS.md: its generated tables are those of the result files."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from lowbit_k2.asr.evaluation import Evaluation
from lowbit_k2.asr.pairs import Pair
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import write_json
from lowbit_k2.scoring.hub5 import Score
from lowbit_k2.scoring.nist import ScoreStats
from tests.egs.scripts import ROOT, call, local_module

SWITCHBOARD = ROOT / "egs/switchboard"
HEAD = "| bits | %WER swbd, 1best | %WER all, 1best | ins/del/sub | MB | ratio |"


def test_the_tables_have_not_drifted() -> None:
    call(SWITCHBOARD / "local/score_table.py", "--check", "true").good()
    sections = re.findall(r"^<!-- (?!end of)(\S+) -->$", (SWITCHBOARD / "RESULTS.md").read_text(), flags=re.MULTILINE)
    assert sorted(sections) == sorted(path.stem for path in (SWITCHBOARD / "results").glob("*.json"))


def test_a_table_that_has_drifted_is_seen(tmp_path: Path) -> None:
    table = local_module(SWITCHBOARD / "local", "score_table")
    evaluation = Evaluation("1", "eval2000", {}, {}, 100_000, 1_550_000)
    subsets = {"swbd": ScoreStats(0, 1, 2, 30, 5), "all": ScoreStats(1, 2, 3, 60, 9)}
    table.write_scores(tmp_path / "results/mini.json", [(evaluation, {"1best": Score("python", subsets)})])
    pair = Pair("32", "2", "lm_scale_1", 7, 90, asdict(subsets["all"]), 90_000, 10_000)
    write_json(tmp_path / "results/pairs.json", [pair.to_dict()])
    page = tmp_path / "RESULTS.md"
    page.write_text("# R\n\n<!-- mini -->\n<!-- end of mini -->\n<!-- pairs -->\n<!-- end of pairs -->\n")
    with pytest.raises(UserError, match="run ./local/score_table.py"):
        table.write_results(page, tmp_path / "results", check=True)
    table.write_results(page, tmp_path / "results", check=False)
    assert HEAD in page.read_text() and "| 1 | 10.00 | 10.00 | 1/2/3 | 0.100 | 15.5 |" in page.read_text()
    assert "| 32 | 2 | lm scale 1 | 7.78 | 10.00 (1/2/3) | 0.100 |" in page.read_text()
    table.write_results(page, tmp_path / "results", check=True)
