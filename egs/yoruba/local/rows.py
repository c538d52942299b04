#!/usr/bin/env python3
"""Evaluate and tabulate the systems of RESULTS.md.

./local/rows.py evaluate --exp-root exp     # exp/float, exp/naive1, exp/cotrain: test set, sizes -> results/*.json
./local/rows.py results                     # results/*.json and recogs -> the tables of RESULTS.md
./local/rows.py results --check true        # are they those?

RESULTS.md has the flags of train.py by which they were trained.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPE.parents[1]), str(RECIPE / "local")]
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from score_tones import toneless

from lowbit_k2.asr.evaluation import GREEDY, Evaluation, evaluate
from lowbit_k2.asr.model_io import CheckpointChoice
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.asr.result_files import keep, kept_recogs, sets_left
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import run_main
from lowbit_k2.fileio import read_json
from lowbit_k2.recipe.flags import make_parser, str2bool
from lowbit_k2.scoring.recogs import read_recogs
from lowbit_k2.scoring.significance import compare
from lowbit_k2.scoring.wer import Result, as_characters, score
from lowbit_k2.tables import fill_page, markdown_table
from lowbit_k2.train.checkpoint import load_checkpoint

RESULTS = RECIPE / "results"
EPOCHS, AVERAGED, MARGIN = 20, 5, 0.05
FLOAT = ("float", "32")
SYSTEMS = {"float": ("32",), "naive1": ("1",), "cotrain": ("2", "1")}
LABELS = {"float": "float", "naive1": "naive 1-bit", "cotrain": "co-trained"}
Errors = Callable[[list[Result]], list[Result]]  # what counts: words or letters, with tones or without


def evaluate_systems(exp_root: Path) -> None:
    """Every trained system that has no results yet."""
    for name, precisions in SYSTEMS.items():
        exp_dir, result = exp_root / name, RESULTS / f"{name}.json"
        last = exp_dir / f"epoch-{EPOCHS}.pt"
        if not last.is_file() or not sets_left(result, ["test"]):
            continue
        config = DecodeConfig(
            CheckpointChoice(exp_dir, epoch=EPOCHS, avg=AVERAGED, use_averaged_model=True),
            decoding_method=GREEDY,
            manifest_dir=RECIPE / "data/fbank",
            quiet=True,
        )
        found = evaluate(config, precisions, "test", lambda: load_cuts(RECIPE / "data/fbank", "yoruba", "test"))
        progress = load_checkpoint(last).meta["progress"]
        described = {"label": LABELS[name], "seconds": round(progress["seconds"]), "date": time.strftime("%Y-%m-%d")}
        keep(result, described, found, exp_dir)


def evaluations() -> list[tuple[str, Evaluation]]:
    """Of all systems that have results, by name."""
    paths = {name: RESULTS / f"{name}.json" for name in SYSTEMS}
    return [
        (name, Evaluation(**values))
        for name, path in paths.items()
        if path.is_file()
        for values in read_json(path)["evaluations"]
    ]


def recognised(name: str, precision: str) -> list[Result]:
    return read_recogs(kept_recogs(RESULTS / f"{name}.json", precision, GREEDY))


def rates_table() -> str:
    """Words and letters, with tone marks and without, and sizes."""
    lines = []
    for name, e in evaluations():
        results = recognised(name, e.precision)
        rates = [score(errors(own)).rate for own in (results, toneless(results)) for errors in (list, as_characters)]
        cells = [f"{100 * rate:.2f}" for rate in rates]
        lines.append([LABELS[name], e.precision, *cells, f"{e.file_bytes / 1e6:.3f}", f"{e.ratio:.1f}"])
    head = ["system", "bits", "WER", "CER", "WER without tone marks", "CER without", "MB", "ratio"]
    return markdown_table(head, lines)


def verdicts_table() -> str:
    """Against float, by utterance: words and letters, with tone marks and without."""
    kinds: dict[str, Errors] = {
        "words": list,
        "words without tone marks": toneless,
        "letters": as_characters,
        "letters without tone marks": lambda results: as_characters(toneless(results)),
    }
    reference = recognised(*FLOAT)
    lines = []
    for name, e in evaluations():
        if (name, e.precision) == FLOAT:
            continue
        for kind, errors in kinds.items():
            d = compare([errors(reference)], [errors(recognised(name, e.precision))]).pooled
            lines.append(
                [
                    LABELS[name],
                    e.precision,
                    kind,
                    f"{100 * d.reference:.2f}",
                    f"{100 * d.other:.2f}",
                    *d.relative_cells(),
                    f"{d.p:.4f}",
                    d.verdict(MARGIN),
                ]
            )
    head = ["system", "bits", "errors in", "float", "system's", "relative", "95%", "p", "verdict"]
    return markdown_table(head, lines)


def write_results(page: Path, check: bool) -> None:
    """Put the tables into a page.

    Raises:
      UserError: `check`, and it has others.
    """
    sections = {"rates": rates_table(), "verdicts": verdicts_table()}
    fill_page(page, sections, "./local/rows.py results", check)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("command", choices=("evaluate", "results"))
    parser.add_argument("--exp-root", type=Path, default=RECIPE / "exp", help="folders of train.py by system")
    parser.add_argument("--check", type=str2bool, default=False, help="for `results`: write nothing, say if it would")
    args = parser.parse_args()
    if args.command == "evaluate":
        evaluate_systems(args.exp_root)
    else:
        write_results(RECIPE / "RESULTS.md", args.check)


if __name__ == "__main__":
    run_main(main)
