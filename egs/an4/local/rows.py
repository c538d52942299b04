#!/usr/bin/env python3
"""Train, evaluate and tabulate the rows of RESULTS.md.

./local/rows.py train --exp-root exp/rows --use-bf16 true      # all rows, one after the other; call again to go on
./local/rows.py train --exp-root exp/rows --only float-s1
./local/rows.py evaluate --exp-root exp/rows                   # trained rows: test set, sizes -> results/*.json
./local/rows.py time --rounds 20                               # seconds per update, interleaved -> timing.json
./local/rows.py table                                          # results/*.json as Markdown

Every row has the same model, epochs, optimiser and augmentation (train.py's defaults); it differs by the flags below.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPE.parents[1]), str(RECIPE)]
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import torch
from train import make_parser as make_training_parser
from train import make_trainer

from lowbit_k2.asr.evaluation import GREEDY, HLG, Evaluation, evaluate
from lowbit_k2.asr.model_io import CheckpointChoice
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.asr.training import Run, set_up_device
from lowbit_k2.data.datamodule import AsrDataModule
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import read_json, write_json
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.flags import make_parser
from lowbit_k2.recipe.training_flags import read_training_flags
from lowbit_k2.tables import markdown_table
from lowbit_k2.train.checkpoint import load_checkpoint, numbered
from lowbit_k2.train.distributed import DistributedContext
from lowbit_k2.train.update import update

RESULTS = RECIPE / "results"
TIMING = RECIPE / "timing.json"
EPOCHS, AVERAGED = 20, 5
CO_TRAINED = ("2", "1.5", "1.5r", "1")
CTC = (GREEDY, HLG)
RNNT = ("greedy_search", "modified_beam_search", "fast_beam_search", "fast_beam_search_LG")
AS_AUTHORS = ("--alpha-init", "one")  # of all rows so far
LM_SCALES = {CTC: 0.6, RNNT: 0.4}  # chosen on dev with the float models
TRANSDUCER = "--objective ctc-rnnt --rnnt-warm-step 1000"  # a CTC head, for two hours of speech
COLUMNS = {
    GREEDY: "greedy",
    HLG: "HLG",
    "greedy_search": "greedy",
    "modified_beam_search": "beam",
    "fast_beam_search": "fast beam",
    "fast_beam_search_LG": "fast beam, LG",
}


@dataclass(frozen=True)
class Row:
    """One training run, and how its model is decoded."""

    name: str
    label: str
    seed: int
    flags: tuple[str, ...]
    precisions: tuple[str, ...]
    methods: tuple[str, ...] = CTC

    @property
    def key(self) -> str:
        return f"{self.name}-s{self.seed}"

    @property
    def base(self) -> str:
        """The row whose seconds per update are the unit."""
        return "float" if self.methods == CTC else "rnnt-float"


def row(
    name: str,
    label: str,
    seeds: tuple[int, ...],
    flags: str,
    precisions: tuple[str, ...],
    methods: tuple[str, ...] = CTC,
) -> list[Row]:
    return [Row(name, label, seed, tuple(flags.split()), precisions, methods) for seed in seeds]


ROWS = [
    *row("float", "float", (1, 2), "--precisions 32", ("32",)),
    *row("naive1", "naive 1-bit", (1, 2), "--precisions 1", ("1",)),
    *row("cotrain-kl-sp", "co-trained, (c) + KL + SP", (1, 2), "--precisions 2,1,sp", CO_TRAINED),
    *row("naive2", "naive 2-bit", (1,), "--precisions 2", ("2",)),
    *row("cotrain-plain", "co-trained, (a) plain", (1,), "--precisions 2,1 --lambda2 0", CO_TRAINED),
    *row("cotrain-kl", "co-trained, (b) + KL", (1,), "--precisions 2,1", CO_TRAINED),
    *row("cotrain-kl-warm", "(b) with a KL that rises", (1,), "--precisions 2,1 --kl-warm-step 1000", CO_TRAINED),
    *row("cotrain-kl-sp-paper", "(c) with `paper`", (1,), "--precisions 2,1,sp --quant-config paper", CO_TRAINED),
    *row("rnnt-float", "float", (1, 2), f"{TRANSDUCER} --precisions 32", ("32",), RNNT),
    *row(
        "rnnt-cotrain-plain",
        "co-trained, plain",
        (1, 2),
        f"{TRANSDUCER} --precisions 2,1 --lambda2 0",
        ("2", "1"),
        RNNT,
    ),
]


def train(rows: list[Row], exp_root: Path, further: list[str]) -> None:
    for r in rows:
        command = [sys.executable, str(RECIPE / "train.py"), "--exp-dir", str(exp_root / r.key), "--resume", "true"]
        command += ["--seed", str(r.seed), "--num-epochs", str(EPOCHS), *AS_AUTHORS, *r.flags, *further]
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True)


def evaluate_rows(rows: list[Row], exp_root: Path) -> None:
    """Decode and pack every finished row that has no results yet."""
    for r in rows:
        exp_dir, target = exp_root / r.key, RESULTS / f"{r.key}.json"
        if target.is_file() or EPOCHS not in numbered(exp_dir, "epoch"):
            continue
        decode = DecodeConfig(
            CheckpointChoice(exp_dir, epoch=EPOCHS, avg=AVERAGED, use_averaged_model=True),
            decoding_method=",".join(r.methods),
            lang_dir=RECIPE / "data/lang_char",
            lm_scale=(LM_SCALES[r.methods],),
            manifest_dir=RECIPE / "data/fbank",
            quiet=True,
        )
        evaluations = evaluate(decode, r.precisions, "test", lambda: load_cuts(RECIPE / "data/fbank", "an4", "test"))
        meta = load_checkpoint(exp_dir / f"epoch-{EPOCHS}.pt").meta
        progress = meta["progress"]
        write_json(
            target,
            {
                "row": r.name,
                "label": r.label,
                "seed": r.seed,
                "flags": " ".join(r.flags),
                "date": time.strftime("%Y-%m-%d"),
                "updates": progress["update"],
                "evaluations": [e.to_dict() for e in evaluations],
            },
        )


def time_rows(rows: list[Row], rounds: int, further: list[str]) -> dict:
    """Seconds per update of every kind of row over those of its float row, on the same batches, in turn.

    The ratio is the median over batches, so that neither batches of other lengths nor a machine that is slower for a
    while counts. `passes` is the number of branches: what the ratio would be if quantizers and KL were free.
    """
    bases = {r.base for r in rows}
    kinds = {r.name: r for r in reversed([r for r in ROWS if r.name in bases or r in rows])}
    trainers = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, r in sorted(kinds.items(), key=lambda item: ROWS.index(item[1])):
            flags = [*r.flags, "--seed", str(r.seed), "--exp-dir", f"{folder}/{name}", "--tensorboard", "false"]
            config = read_training_flags(make_training_parser().parse_args([*flags, *further]))
            data = AsrDataModule(config.data)
            alone = DistributedContext()
            run = Run(config, alone, set_up_device(config.run.num_threads, config.loop, alone), None)
            trainers[name] = make_trainer(config, run, load_tokenizer(config.run.tokens), data)
            trainers[name].model.train()
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        batches = islice(data.train_batches(load_cuts(config.data.manifest_dir, "an4", "train"), epoch=1), rounds + 1)
        for batch in progress_bar(batches, "rounds", total=rounds + 1):
            for name, trainer in trainers.items():
                before = trainer.progress.seconds
                update(trainer, [batch])
                seconds[name].append(trainer.progress.seconds - before)
    measured = {name: values[1:] for name, values in seconds.items()}  # the first is the warm-up
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "flags": " ".join(further),
        "rounds": rounds,
        "float_seconds": {name: statistics.median(measured[name]) for name in bases},
        "ratio": {
            name: statistics.median(a / b for a, b in zip(values, measured[kinds[name].base], strict=True))
            for name, values in measured.items()
        },
        "passes": {name: len(trainers[name].co_training.branches(1)) for name in trainers},
    }


def table() -> str:
    """All results in the order of ROWS, CTC's and the transducers' apart; `time` is that of an update over float's."""
    ratios = read_json(TIMING)["ratio"] if TIMING.is_file() else {}
    tables = []
    for methods in dict.fromkeys(r.methods for r in ROWS):
        results = [
            read_json(path) for r in ROWS if r.methods == methods and (path := RESULTS / f"{r.key}.json").is_file()
        ]
        if results:
            tables.append(format_results(results, methods, ratios))
    return "\n\n".join(tables)


def format_results(results: list[dict], methods: tuple[str, ...], ratios: dict[str, float]) -> str:
    """Markdown."""
    head = ["system", "bits", "seed"]
    for method in methods:
        head += [f"WER {COLUMNS[method]}", "95%", "ins/del/sub"]
    lines = []
    for result in results:
        time_ratio = f"{ratios[result['row']]:.2f}" if result["row"] in ratios else "-"
        for values in result["evaluations"]:
            e = Evaluation(**values)
            cells = [result["label"], e.precision, str(result["seed"])]
            for method in methods:
                s = e.stats(method)
                cells += [f"{100 * s.rate:.2f}", e.interval_text(method), f"{s.ins}/{s.dels}/{s.sub}"]
            lines.append([*cells, f"{e.file_bytes / 1e6:.3f}", f"{e.ratio:.1f}", time_ratio])
    return markdown_table([*head, "MB", "ratio", "time"], lines)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("command", choices=("train", "evaluate", "time", "table"))
    parser.add_argument("--exp-root", type=Path, default=RECIPE / "exp/rows")
    parser.add_argument("--only", help="names of rows, by commas, e.g. float-s1,naive1-s1")
    parser.add_argument("--rounds", type=int, default=20, help="batches for `time`")
    args, further = parser.parse_known_args()
    rows = ROWS
    if args.only:
        keys = args.only.split(",")
        rows = [r for r in ROWS if r.key in keys]
        if len(rows) != len(keys):
            raise UserError(f"--only {args.only}: choose of {', '.join(r.key for r in ROWS)}")
    if args.command == "train":
        train(rows, args.exp_root, further)
    elif args.command == "evaluate":
        evaluate_rows(rows, args.exp_root)
    elif args.command == "time":
        write_json(TIMING, time_rows(rows, args.rounds, further))
        print(TIMING.read_text())
    else:
        print(table())


if __name__ == "__main__":
    run_main(main)
