#!/usr/bin/env python3
"""Language models by their precision: train, quantize and pack each row of a table; print perplexity, size and speed.

./local/rows_lm.py --train-text train.txt.gz --dev dev.txt.gz --test test.txt.gz --exp-root exp/rows-lm
./local/rows_lm.py ... --model lstm-small --only float,cotrain-2,cotrain-1 --epochs 5
./local/rows_lm.py ... --print-only true                               # the rows that are done

A row that is done is not made again, one that was stopped goes on. Sizes are those of the packed files, ratios those to
the float model in the same format; milliseconds are those of one run each on this machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(RECIPE.parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.asr.language_model import load_language_model
from lowbit_k2.asr.perplexity import perplexity
from lowbit_k2.data.lm_text import TokenText
from lowbit_k2.data.text_config import TextConfig
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import read_json, write_json
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.flags import make_parser, str2bool
from lowbit_k2.tables import markdown_table
from lowbit_k2.train.checkpoint import numbered

FLOAT, COTRAIN = "float", "cotrain"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      precision: of the packed file.
      flags: of its training; none: it is made of the training `of`.
      measure: by which precisions per tensor are chosen.
      from_float: whether training begins with the float model, at a third of its epochs.
    """

    precision: str
    flags: tuple[str, ...] = ()
    of: str = ""
    measure: str = ""
    from_float: bool = False


ROWS: dict[str, Row] = {
    FLOAT: Row("32", ("--precisions", "32")),
    **{f"bits-{b}": Row(str(b), ("--precisions", str(b))) for b in (8, 4, 2, 1)},
    **{
        f"admm-{b}": Row(str(b), ("--precisions", str(b), "--admm-every", "25", "--admm-gamma", "0.1"), from_float=True)
        for b in (4, 2, 1)
    },
    **{f"mixed-{m}": Row(f"mixed-{m}", measure=m, from_float=True) for m in ("kl", "hessian")},
    "cotrain-2": Row("2", ("--precisions", "2,1,sp"), of=COTRAIN),
    "cotrain-1": Row("1", ("--precisions", "2,1,sp"), of=COTRAIN),
}


class Table:
    """The rows of a model under one folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.text = TextConfig(kaldi_text=args.kaldi_text, normalize_text=args.normalize_text)
        self.reading = ["--kaldi-text", str(args.kaldi_text), "--normalize-text", args.normalize_text]

    def folder(self, name: str) -> Path:
        return self.args.exp_root / f"{self.args.model}-{ROWS[name].of or name}"

    def make(self, name: str) -> None:
        """Train, pack and score a row, and leave its numbers in the folder."""
        row, folder = ROWS[name], self.folder(name)
        result = folder / f"result-{name}.json"
        if result.is_file():
            return
        epochs = max(1, self.args.epochs // 3) if row.from_float else self.args.epochs
        if epochs not in (numbered(folder, "epoch") if folder.is_dir() else []):
            flags = ["--precisions", str(self.choose(row.measure))] if row.measure else list(row.flags)
            if row.measure:
                flags += ["--quant-config", "mixed"]
            if row.from_float:
                flags += ["--init-from", str(self.pretrained())]
            self.run("train_lm.py", *self.training(folder, epochs), *flags)
        packed = folder / f"{name}.safetensors"
        self.run("export.py", "--exp-dir", folder, "--precision", row.precision, "--output", packed)
        write_json(result, self.score(packed))

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
            table = ["--measure", measure, "--table", chosen.with_suffix(".table.json"), "--num-batches", 2]
            budget = ["--average-bits", self.args.average_bits, "--output", chosen]
            self.run("-m", "lowbit_k2.recipe.allocate", *source, *table, *budget)
        return chosen

    def score(self, packed: Path) -> dict[str, object]:
        lm = load_language_model(packed)
        found = {}
        for name, path in (("dev", self.args.dev), ("test", self.args.test)):
            found[name] = perplexity(lm, TokenText.read([path], lm.tokenizer, self.text), self.text)
        return {
            "bytes": packed.stat().st_size,
            "per_word": {name: own.per_word for name, own in found.items()},
            "ms_per_word": 1000 * found["test"].seconds / found["test"].words,
        }

    def run(self, *command: object) -> None:
        """A script of the recipe, or a module; its output is shown."""
        named = list(map(str, command))
        script = named if named[0] == "-m" else [str(RECIPE / named[0]), *named[1:]]
        done = subprocess.run(
            [sys.executable, *script], check=False, env={**os.environ, "PYTHONPATH": str(RECIPE.parents[1])}
        )
        if done.returncode:
            raise UserError(f"{named[0]} has failed: see its last line")

    def show(self, names: Sequence[str]) -> str:
        """The rows that are done, as Markdown."""
        results = {name: self.folder(name) / f"result-{name}.json" for name in names}
        done = {name: read_json(path) for name, path in results.items() if path.is_file()}
        if FLOAT not in done:
            raise UserError(f"{self.args.exp_root} has no row {FLOAT} yet: run this without --print-only")
        reference, lines = done[FLOAT], []
        for name, own in done.items():
            dev, test = (own["per_word"][part] for part in ("dev", "test"))
            loss = test / reference["per_word"]["test"] - 1
            size = [f"{own['bytes'] / 1e6:.2f}", f"{reference['bytes'] / own['bytes']:.1f}x"]
            lines.append([name, f"{dev:.1f}", f"{test:.1f}", f"{loss:+.1%}", *size, f"{own['ms_per_word']:.2f}"])
        return markdown_table(["row", "dev", "test", "to float", "MB", "ratio", "ms per word"], lines)


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--train-text", required=True, help="as train_lm.py takes it")
    parser.add_argument("--dev", type=Path, required=True, help="text for validation")
    parser.add_argument("--test", type=Path, required=True, help="text that decides nothing")
    parser.add_argument("--kaldi-text", type=str2bool, default=False, help="lines begin with an id")
    parser.add_argument("--normalize-text", default="none", help="as train_lm.py takes it")
    parser.add_argument("--exp-root", type=Path, default=Path("exp/rows-lm"), help="a folder per row below it")
    parser.add_argument("--model", default="small", help="size preset")
    parser.add_argument(
        "--epochs", type=int, default=10, help="of the float model; rows that begin with it take a third"
    )
    parser.add_argument("--average-bits", type=float, default=1.9, help="budget of the mixed rows")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, by commas")
    parser.add_argument("--use-bf16", type=str2bool, default=False, help="train in bfloat16")
    parser.add_argument("--more", default="", help="more flags of train_lm.py, in quotes")
    parser.add_argument("--print-only", type=str2bool, default=False, help="the table of what is done")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    names = args.only.split(",")
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        raise UserError(f"--only {unknown[0]} is no row: choose of {', '.join(ROWS)}")
    table = Table(args)
    for name in progress_bar([] if args.print_only else names, "rows", unit="row"):
        table.make(name)
    print(table.show(list(dict.fromkeys([FLOAT, *names]))))


if __name__ == "__main__":
    run_main(main)
