#!/usr/bin/env python3
"""The scores of evaluate.py as a table, and in RESULTS.md; there, too, recognisers by language models.

./demo.sh --output results/mini.json        # or evaluate.py --output results/NAME.json
python -m lowbit_k2.recipe.pair_models ... --output results/pairs.json
./local/score_table.py                      # results/NAME.json -> the section NAME of RESULTS.md
./local/score_table.py --check true         # are they those?
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(RECIPE.parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.asr.evaluation import Evaluation
from lowbit_k2.asr.pairs import format_pairs, load_pairs
from lowbit_k2.errors import run_main
from lowbit_k2.fileio import read_json, write_json
from lowbit_k2.recipe.flags import make_parser, str2bool
from lowbit_k2.scoring.hub5 import Score
from lowbit_k2.scoring.nist import ScoreStats
from lowbit_k2.tables import fill_page, markdown_table

PAIRS = "pairs"  # name of the result file of lowbit_k2.recipe.pair_models
Rows = list[tuple[Evaluation, dict[str, Score]]]


def format_scores(rows: Rows) -> str:
    """Markdown: for each precision the error rates of the test set's parts by each method and the counts of all of it,
    MB on disk, ratio."""
    head = ["bits"]
    for method, done in rows[0][1].items():
        head += [*(f"%WER {part}, {method}" for part in done.subsets), "ins/del/sub"]
    table = []
    for e, scores in rows:
        cells = [e.precision]
        for done in scores.values():
            *_, total = done.subsets.values()
            cells += [f"{100 * stats.rate:.2f}" for stats in done.subsets.values()]
            cells.append(f"{total.ins}/{total.dels}/{total.sub}")
        table.append([*cells, f"{e.file_bytes / 1e6:.3f}", f"{e.ratio:.1f}"])
    return markdown_table([*head, "MB", "ratio"], table)


def write_scores(path: Path, rows: Rows) -> None:
    """As JSON, for `write_results`; methods and parts are lists, to keep their order."""
    written = []
    for e, scores in rows:
        found = [[m, s.scorer, [[part, asdict(stats)] for part, stats in s.subsets.items()]] for m, s in scores.items()]
        written.append({**e.to_dict(), "scores": found})
    write_json(path, written)


def read_scores(path: Path) -> Rows:
    """Inverse of `write_scores`."""
    rows = []
    for values in read_json(path):
        found = values.pop("scores")
        scores = {m: Score(scorer, {part: ScoreStats(**stats) for part, stats in parts}) for m, scorer, parts in found}
        rows.append((Evaluation(**values), scores))
    return rows


def write_results(page: Path, results: Path, check: bool) -> None:
    """A section for each result file.

    Raises:
      UserError: `check`, and the page has other tables; or no section of that name.
    """
    sections = {
        path.stem: format_pairs(load_pairs(path)) if path.stem == PAIRS else format_scores(read_scores(path))
        for path in sorted(results.glob("*.json"))
    }
    fill_page(page, sections, "./local/score_table.py", check)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--check", type=str2bool, default=False, help="write nothing, say if it would")
    args = parser.parse_args()
    write_results(RECIPE / "RESULTS.md", RECIPE / "results", args.check)


if __name__ == "__main__":
    run_main(main)
