#!/usr/bin/env python3
"""Language models by their precision: train, quantize and pack each row of a table; print perplexity, size and speed.

./local/rows_lm.py make --train-text train.txt.gz --dev dev.txt.gz --test test.txt.gz --exp-root exp/rows-lm
./local/rows_lm.py make ... --model lstm-small --only float,float-on,cotrain-2,cotrain-1 --epochs 9
./local/rows_lm.py table --model lstm-small                            # the rows that are done
./local/rows_lm.py results                                             # results/lm.json -> the table of RESULTS.md

A row that is done is not made again, one that was stopped goes on. All but the first begin with the float model and are
trained for as many epochs; `float-on` is the same in float, against which they are tested: paired bootstrap over the
sentences of the test text, whose log-probabilities it draws. Sizes are those of the packed files, ratios those to the
float model in the same format; milliseconds are those of one run each on this machine.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RECIPE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPE.parents[1]), str(RECIPE / "local")]
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from scripts import chosen_rows, run_script

from lowbit_k2.asr.language_model import load_language_model
from lowbit_k2.asr.perplexity import per_word, row_log_probs
from lowbit_k2.data.lm_text import TokenText, text_lines
from lowbit_k2.data.text_config import TextConfig
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import read_json, write_json
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.flags import make_parser, str2bool
from lowbit_k2.scoring.significance import paired_bootstrap
from lowbit_k2.tables import fill_page, markdown_table
from lowbit_k2.train.checkpoint import numbered

FLOAT, CONTROL, COTRAIN = "float", "float-on", "cotrain"
PAGE, RESULTS, SECTION = RECIPE / "RESULTS.md", RECIPE / "results/lm.json", "language-models"
HEADERS = ("model", "row", "bits", "dev", "test", "to float-on", "95%", "p", "MB", "ratio", "ms per word")


@dataclass(frozen=True)
class Row:
    """A line of the table; every matrix is at its precision, norms and biases are in fp16, but for the float rows.

    Attributes:
      precision: of the packed file.
      flags: of its training.
      of: the training that it is made of; "": its own.
      measure: by which precisions per tensor are chosen.
      taught: by the float model, whose KL divergence is a second loss.
    """

    precision: str
    flags: tuple[str, ...] = ()
    of: str = ""
    measure: str = ""
    taught: bool = False


LOW = ("--quant-config", "mixed", "--precisions")
ADMM = ("--admm-every", "25", "--admm-gamma", "0.1")
ROWS: dict[str, Row] = {
    **{name: Row("32", ("--precisions", "32")) for name in (FLOAT, CONTROL)},
    **{f"bits-{b}": Row(str(b), (*LOW, str(b))) for b in (8, 4, 2, 1)},
    **{f"admm-{b}": Row(str(b), (*LOW, str(b), *ADMM)) for b in (4, 2, 1)},
    **{f"mixed-{m}": Row(f"mixed-{m}", LOW, measure=m) for m in ("kl", "hessian")},
    **{f"taught-{b}": Row(str(b), (*LOW, str(b)), taught=True) for b in (2, 1)},
    **{f"cotrain-{b}": Row(str(b), (*LOW, "2,1,sp"), of=COTRAIN) for b in (2, 1)},
}


class Table:
    """The rows of a model under one folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.text = TextConfig(kaldi_text=args.kaldi_text, normalize_text=args.normalize_text)
        self.reading = ["--kaldi-text", str(args.kaldi_text), "--normalize-text", args.normalize_text]

    def folder(self, name: str) -> Path:
        return self.args.exp_root / f"{self.args.model}-{ROWS[name].of or name}"

    def result(self, name: str) -> Path:
        """Where the numbers of a row are."""
        return self.folder(name) / f"result-{name}.json"

    def make(self, name: str) -> None:
        """Train, pack and score a row, and leave its numbers in the folder."""
        row, folder = ROWS[name], self.folder(name)
        if self.result(name).is_file():
            return
        epochs = self.args.epochs if name == FLOAT else max(1, self.args.epochs // 3)
        if epochs not in (numbered(folder, "epoch") if folder.is_dir() else []):
            flags = [*row.flags, *([self.choose(row.measure)] if row.measure else [])]
            if name != FLOAT:
                flags += ["--init-from", self.pretrained(), *self.args.more_later.split()]
            if row.taught:
                flags += ["--teacher", self.pretrained()]
            run_script("train_lm.py", *self.training(folder, epochs), *flags)
        packed = folder / f"{name}.safetensors"
        run_script("export.py", "--exp-dir", folder, "--precision", row.precision, "--output", packed)
        write_json(self.result(name), self.score(packed) | {"bits": self.bits(row)})

    def bits(self, row: Row) -> str:
        return f"{self.args.average_bits:g}" if row.measure else row.precision

    def training(self, folder: Path, epochs: int) -> list[object]:
        texts = ["--train-text", self.args.train_text, "--valid-text", self.args.dev, *self.reading]
        more = ["--exp-dir", folder, "--num-epochs", epochs, "--resume", "true", "--model", self.args.model]
        return [*texts, *more, "--use-bf16", str(self.args.use_bf16), *self.args.more.split()]

    def pretrained(self) -> Path:
        """The float model's last checkpoint."""
        self.make(FLOAT)
        return self.folder(FLOAT) / f"epoch-{self.args.epochs}.pt"

    def choose(self, measure: str) -> Path:
        """Precisions per tensor at the bytes of `--average-bits`."""
        chosen = self.folder(FLOAT) / f"mixed-{measure}.json"
        if not chosen.is_file():
            source = ["--checkpoint", self.pretrained(), "--text", *str(self.args.train_text).split(","), *self.reading]
            effort = ["--num-batches", 2, "--probes", 2]  # a probe is a mean over 10^5 weights and more
            table = ["--measure", measure, "--table", chosen.with_suffix(".table.json"), *effort]
            budget = ["--average-bits", self.args.average_bits, "--output", chosen]
            run_script("-m", "lowbit_k2.recipe.allocate", *source, *table, *budget)
        return chosen

    def score(self, packed: Path) -> dict[str, Any]:
        """Perplexities, and of the test text -log P and the number of words and ends of each sentence."""
        lm = load_language_model(packed)
        perplexities, seconds = {}, 0.0
        for part in ("dev", "test"):
            path = getattr(self.args, part)
            text = TokenText.read([path], lm.tokenizer, self.text)
            start = time.perf_counter()
            losses = -row_log_probs(lm, text, self.text)[0]
            seconds = time.perf_counter() - start
            perplexities[part] = per_word(float(losses.sum()), text)
        return {
            "bytes": packed.stat().st_size,
            **perplexities,
            "ms_per_word": 1000 * seconds / text.words,
            "losses": losses.round(4).tolist(),
            "words": [line.count(" ") + 2 for _, line in text_lines([path], self.text)],
        }

    def summary(self) -> dict[str, dict[str, Any]]:
        """The rows that are done, each against `float-on`.

        Raises:
          UserError: there are none, or no float row.
        """
        done = {name: read_json(self.result(name)) for name in ROWS if self.result(name).is_file()}
        if FLOAT not in done:
            raise UserError(f"{self.args.exp_root} has no row {FLOAT} of {self.args.model} yet: run make")
        control = done.get(CONTROL)
        for name, own in done.items():
            if control is not None and name not in (FLOAT, CONTROL):
                own |= against(control, own)
        return {name: {k: v for k, v in own.items() if k not in ("losses", "words")} for name, own in done.items()}


def against(control: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A row's perplexity on the test text over that of another, less 1; its 95% interval, and p of no difference.

    Raises:
      UserError: they were scored on other texts.
    """
    if control["words"] != own["words"]:
        raise UserError("rows were scored on different test texts: remove their result-*.json, and make them again")
    found = paired_bootstrap(np.array([control["losses"], own["losses"], own["words"]]).T)
    return {
        "relative": math.expm1(found.absolute),
        "interval": [math.expm1(bound) for bound in found.absolute_interval],
        "p": found.p,
    }


def format_rows(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Markdown of the rows of each model, in the order of ROWS."""
    lines = []
    for model, rows, name in ((model, rows, name) for model, rows in models.items() for name in ROWS if name in rows):
        own = rows[name]
        tested = ["-", "-", "-"]
        if "p" in own:
            low, high = own["interval"]
            tested = [f"{own['relative']:+.1%}", f"{low:+.1%} to {high:+.1%}", f"{own['p']:.4f}"]
        size = [f"{own['bytes'] / 1e6:.3f}", f"{rows[FLOAT]['bytes'] / own['bytes']:.1f}"]
        ppl = [f"{own[part]:.1f}" for part in ("dev", "test")]
        lines.append([model, name, own["bits"], *ppl, *tested, *size, f"{own['ms_per_word']:.2f}"])
    return markdown_table(HEADERS, lines)


def write_results(page: Path, check: bool) -> None:
    """Put what `results/lm.json` has into the table of a page.

    Raises:
      UserError: `check`, and the page has another one.
    """
    fill_page(page, {SECTION: format_rows(read_json(RESULTS))}, "./local/rows_lm.py results", check)


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("command", choices=("make", "table", "results"))
    parser.add_argument("--train-text", help="as train_lm.py takes it")
    parser.add_argument("--dev", type=Path, help="text for validation")
    parser.add_argument("--test", type=Path, help="text that decides nothing")
    parser.add_argument("--kaldi-text", type=str2bool, default=False, help="lines begin with an id")
    parser.add_argument("--normalize-text", default="none", help="as train_lm.py takes it")
    parser.add_argument("--exp-root", type=Path, default=Path("exp/rows-lm"), help="a folder per row below it")
    parser.add_argument("--model", default="small", help="size preset")
    parser.add_argument("--epochs", type=int, default=9, help="of the float model; the others take a third")
    parser.add_argument("--average-bits", type=float, default=1.9, help="budget of the mixed rows")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, by commas")
    parser.add_argument("--use-bf16", type=str2bool, default=False, help="train in bfloat16")
    parser.add_argument("--more", default="", help="more flags of train_lm.py, in quotes")
    parser.add_argument(
        "--more-later", default="", help="and for all rows but the float one, e.g. another --train-text"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="for `table`: a JSON file, as results/lm.json, in which these rows take the place of the model's",
    )
    parser.add_argument("--check", type=str2bool, default=False, help="for `results`: write nothing, say if it would")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    if args.command == "results":
        write_results(PAGE, args.check)
        return
    table = Table(args)
    if args.command == "make":
        for text in ("train_text", "dev", "test"):
            if getattr(args, text) is None:
                raise UserError(f"--{text.replace('_', '-')} is needed by make: a text file, one sentence per line")
        names = chosen_rows(args.only, ROWS)
        for name in progress_bar(names, "rows", unit="row"):
            table.make(name)
    rows = {args.model: table.summary()}
    if args.output:
        kept = read_json(args.output) if args.output.is_file() else {}
        write_json(args.output, kept | rows)
    print(format_rows(rows))


if __name__ == "__main__":
    run_main(main)
