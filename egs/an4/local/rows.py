#!/usr/bin/env python3
"""Train, evaluate and tabulate the rows of RESULTS.md.

./local/rows.py train --exp-root exp/rows --use-bf16 true      # all rows, one after the other; call again to go on
./local/rows.py train --exp-root exp/rows --only float-s1
./local/rows.py evaluate --exp-root exp/rows                   # trained rows: test set, sizes -> results/*.json
./local/rows.py time --rounds 20                               # seconds per update, interleaved -> timing.json
./local/rows.py results                                        # results/*.json and recogs -> the tables of RESULTS.md
./local/rows.py results --check true                           # are they those?
./local/rows.py prepare --an4-dir an4                          # data of the cross-validation: data/fold-1 ... fold-5
./local/rows.py train --folds true                             # its rows; evaluate --folds true

Every row has the same model, optimiser and augmentation (train.py's defaults); it differs by the flags below.
"""

from __future__ import annotations

import gzip
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPE.parents[1]), str(RECIPE), str(RECIPE / "local")]
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import torch
from headlines import SECTION as HEADLINES
from headlines import draw, headline_table, headlines
from systems import (
    COLUMNS,
    CTC,
    FOLD_ROWS,
    LATTICE,
    NUM_FOLDS,
    REFERENCE,
    RNNT,
    ROWS,
    SEARCH_FLAGS,
    STREAMED,
    SYSTEMS,
    Row,
)
from train import make_parser as make_training_parser
from train import make_trainer

from lowbit_k2.asr.evaluation import Evaluation, evaluate
from lowbit_k2.asr.exporting import ExportConfig, run_export
from lowbit_k2.asr.model_io import PRETRAINED
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.asr.training import Run, set_up_device
from lowbit_k2.data.datamodule import AsrDataModule
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write, read_json, write_json
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.flags import make_parser, str2bool
from lowbit_k2.recipe.training_flags import read_training_flags
from lowbit_k2.scoring.detail import RUNS, count_runs, deletion_runs, format_runs
from lowbit_k2.scoring.recogs import read_recogs
from lowbit_k2.scoring.significance import compare, matched, matched_pairs
from lowbit_k2.tables import fill_sections, markdown_table
from lowbit_k2.train.checkpoint import load_checkpoint, numbered
from lowbit_k2.train.distributed import DistributedContext
from lowbit_k2.train.update import update

RESULTS, RECOGS, TIMING = RECIPE / "results", RECIPE / "results/recogs", RECIPE / "timing.json"
SECTIONS = {CTC: "ctc", RNNT: "transducer", LATTICE: "tdnnf", STREAMED: "lstm"}  # of RESULTS.md
MARGIN = 0.05  # relative; below it two systems count as equivalent


def train(rows: list[Row], exp_root: Path, further: list[str]) -> None:
    """Every row that has no results yet, and first the float row that it begins with."""
    for r in rows:
        if (RESULTS / f"{r.key}.json").is_file():
            continue
        first = r.started_from()
        if first is not None and not (exp_root / first.key / PRETRAINED).is_file():
            train_one(first, exp_root, further)
            averaged = ExportConfig(first.choice(exp_root), "32", save_pretrained=True)
            run_export(averaged, load_train_cuts=lambda: None)
        allocation = r.allocation(exp_root)
        if allocation is not None and not allocation.is_file():
            search_precisions(r, exp_root, allocation)
        architecture = r.architecture(exp_root)
        if architecture is not None and not architecture.is_file():
            search_widths(r, architecture, further)
        train_one(r, exp_root, further)


def search_precisions(r: Row, exp_root: Path, allocation: Path) -> None:
    """What each tensor of its float row gets, measured on one mini-batch of training speech."""
    search, folder = r.system.search, exp_root / r.started_from().key
    table = folder / f"{search.measure}.json"
    command = [sys.executable, "-m", "lowbit_k2.recipe.allocate", "--table", str(table)]
    command += ["--checkpoint", str(folder / PRETRAINED), "--lang-dir", str(r.lang_dir)]
    command += ["--cuts", str(r.data / "fbank/an4_cuts_train.jsonl.gz")]
    if not table.is_file():
        command += ["--measure", search.measure]
    command += [*search.budget.split(), "--output", str(allocation)]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def search_widths(r: Row, architecture: Path, further: list[str]) -> None:
    """The architecture of a searched row."""
    command = [sys.executable, "-m", "lowbit_k2.recipe.search", "--corpus", "an4", "--seed", str(r.seed)]
    command += ["--manifest-dir", str(r.data / "fbank"), "--lang-dir", str(r.lang_dir)]
    command += ["--exp-dir", str(architecture.parents[1]), *SEARCH_FLAGS.split(), *further]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def train_one(r: Row, exp_root: Path, further: list[str]) -> None:
    """Train, or go on."""
    command = [sys.executable, str(RECIPE / "train.py"), "--exp-dir", str(exp_root / r.key), "--resume", "true"]
    command += [*r.flags(exp_root), *further]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def evaluate_rows(rows: list[Row], exp_root: Path) -> None:
    """Decode and pack every finished row that has no results yet; keep what was recognised."""
    for r in rows:
        system, target = r.system, RESULTS / f"{r.key}.json"
        if target.is_file() or system.epochs not in numbered(exp_root / r.key, "epoch"):
            continue
        decode = DecodeConfig(
            r.choice(exp_root),
            decoding_method=",".join(system.methods),
            lang_dir=r.lang_dir,
            lm_scale=(system.lm_scale,),
            manifest_dir=r.data / "fbank",
            quiet=True,
        )
        evaluations = evaluate(
            decode, system.precisions, "test", lambda r=r: load_cuts(r.data / "fbank", "an4", "test")
        )
        for e in evaluations:
            for method, path in e.recogs.items():
                text = (exp_root / r.key / path).read_bytes()
                with atomic_write(recogs_path(r, e.precision, method)) as temporary:
                    temporary.write_bytes(gzip.compress(text, mtime=0))
        progress = load_checkpoint(exp_root / r.key / f"epoch-{system.epochs}.pt").meta["progress"]
        write_json(
            target,
            {
                "row": system.name,
                "label": system.label,
                "seed": r.seed,
                "fold": r.fold,
                "flags": system.flags,
                "lm_scale": system.lm_scale,
                "date": time.strftime("%Y-%m-%d"),
                "updates": progress["update"],
                "seconds": round(progress["seconds"]),
                "evaluations": [e.to_dict() for e in evaluations],
            },
        )


def recogs_path(r: Row, precision: str, method: str) -> Path:
    return RECOGS / f"{r.key}-{precision}-{method}.txt.gz"


def verdicts() -> str:
    """Every system of the cross-validation against float, over the folds and seeds that both have, by speaker."""
    lines, float_bits = [], SYSTEMS[REFERENCE].compared
    for method in CTC:
        for system in (s for s in SYSTEMS.values() if s.compared and s.name != REFERENCE):
            rows = [r for r in FOLD_ROWS if r.system == system]
            pairs = [
                (
                    recogs_path(Row(SYSTEMS[REFERENCE], r.seed, r.fold), float_bits, method),
                    recogs_path(r, system.compared, method),
                )
                for r in rows
            ]
            pairs = [pair for pair in pairs if all(path.is_file() for path in pair)]
            if not pairs:
                continue
            reference, other = ([read_recogs(path) for path in paths] for paths in zip(*pairs, strict=True))
            found = compare(reference, other, speaker_of)
            d = found.pooled
            lines.append(
                [
                    system.label,
                    COLUMNS[method],
                    str(len(pairs)),
                    f"{100 * d.reference:.2f}",
                    f"{100 * d.other:.2f}",
                    f"{100 * d.relative:+.1f}%",
                    " .. ".join(f"{100 * end:+.1f}" for end in d.relative_interval),
                    f"{d.p:.4f}",
                    f"{found.worse} / {found.better} / {d.units - found.worse - found.better}",
                    d.verdict(MARGIN),
                ]
            )
    head = ["system", "search", "folds x seeds", "float", "WER", "relative", "95%", "p", "speakers -/+/=", "verdict"]
    return markdown_table(head, lines)


def speaker_of(utterance: str) -> str:
    """an251-fash-b -> fash."""
    return utterance.split("-")[1]


def time_rows(rows: list[Row], exp_root: Path, rounds: int, further: list[str]) -> dict:
    """Seconds per update of every kind of row over those of its float row, on the same batches, in turn.

    The ratio is the median over batches, so that neither batches of other lengths nor a machine that is slower for a
    while counts. `passes` is the number of branches: what the ratio would be if quantizers and KL were free.
    """
    bases = {r.system.base for r in rows}
    kinds = {r.system.name: r for r in reversed([r for r in ROWS if r.system.name in bases or r in rows])}
    trainers = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, r in sorted(kinds.items(), key=lambda item: ROWS.index(item[1])):
            flags = [*r.flags(exp_root), "--exp-dir", f"{folder}/{name}", "--tensorboard", "false"]
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
            name: statistics.median(a / b for a, b in zip(values, measured[kinds[name].system.base], strict=True))
            for name, values in measured.items()
        },
        "passes": {name: len(trainers[name].co_training.branches(1)) for name in trainers},
    }


def write_headlines(page: Path, picture: Path, check: bool) -> None:
    """The README's table, and the picture beside it where the table was another.

    Raises:
      UserError: `check`, and the page has another table.
    """
    found = headlines()
    if fill(page, {HEADLINES: headline_table(found)}, check):
        draw(found, picture)


def fill(page: Path, sections: dict[str, str], check: bool) -> bool:
    """Put the sections into a page, if it has others; whether it had.

    Raises:
      UserError: `check`, and it has.
    """
    text = page.read_text()
    filled = fill_sections(text, sections)
    if filled == text:
        return False
    if check:
        raise UserError(f"{page} has other tables than {RESULTS}: run ./local/rows.py results")
    page.write_text(filled)
    return True


def write_results(page: Path, check: bool) -> None:
    """Put the results into the tables of a page, in the order of ROWS, by the searches that decode them.

    time is that of an update over float's, del the number of runs of so many deleted words and more, p that of MAPSSWE
    against the float row that a row is compared with.

    Raises:
      UserError: `check`, and the page has others.
    """
    ratios = read_json(TIMING)["ratio"] if TIMING.is_file() else {}
    sections = {"verdicts": verdicts()}
    for methods, name in SECTIONS.items():
        found = [r for r in ROWS if r.system.methods == methods and (RESULTS / f"{r.key}.json").is_file()]
        if found:
            sections[name] = format_results(found, methods, ratios)
    fill(page, sections, check)


def format_results(rows: list[Row], methods: tuple[str, ...], ratios: dict[str, float]) -> str:
    """Markdown."""
    tested = any(p_value(r, r.system.precisions[0], methods[0]) != "-" for r in rows)
    kept = all(deleted_runs(r, r.system.precisions[0], methods[0]) for r in rows)
    head = ["system", "bits", "seed"]
    for method in methods:
        head += [f"WER {COLUMNS[method]}", "95%", "ins/del/sub"]
        head += [*([f"del {'/'.join(f'{n}+' for n in RUNS)}"] if kept else []), *(["p"] if tested else [])]
    lines = []
    for r in rows:
        result = read_json(RESULTS / f"{r.key}.json")
        time_ratio = f"{ratios[r.system.name]:.2f}" if r.system.name in ratios else "-"
        for values in result["evaluations"]:
            e = Evaluation(**values)
            cells = [r.system.label, e.precision, str(r.seed)]
            for method in methods:
                s = e.stats(method)
                cells += [f"{100 * s.rate:.2f}", e.interval_text(method), f"{s.ins}/{s.dels}/{s.sub}"]
                cells += [deleted_runs(r, e.precision, method)] if kept else []
                cells += [p_value(r, e.precision, method)] if tested else []
            lines.append([*cells, f"{e.file_bytes / 1e6:.3f}", f"{e.ratio:.1f}", time_ratio])
    return markdown_table([*head, "MB", "ratio", "time"], lines)


def deleted_runs(r: Row, precision: str, method: str) -> str:
    """How many runs of at least so many deleted words, `3/1/0`; "" where what was recognised was not kept."""
    path = recogs_path(r, precision, method)
    return format_runs(count_runs(deletion_runs(read_recogs(path)))) if path.is_file() else ""


def p_value(r: Row, precision: str, method: str) -> str:
    """Of MAPSSWE against the float row of the same seed and fold; "-" for that row itself, and where one is missing."""
    reference = SYSTEMS[r.system.reference]
    paths = recogs_path(Row(reference, r.seed, r.fold), "32", method), recogs_path(r, precision, method)
    if reference == r.system or not all(path.is_file() for path in paths):
        return "-"
    first, second = (read_recogs(path) for path in paths)
    return f"{matched_pairs(*matched(first, second, tuple(map(str, paths)))).p:.3f}"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("command", choices=("prepare", "train", "evaluate", "time", "results"))
    parser.add_argument("--exp-root", type=Path, default=RECIPE / "exp/rows")
    parser.add_argument("--only", help="names of rows, by commas, e.g. float-s1,naive1-s1,float-f2-s1")
    parser.add_argument("--folds", type=str2bool, default=False, help="the rows of the cross-validation")
    parser.add_argument("--rounds", type=int, default=20, help="batches for `time`")
    parser.add_argument("--check", type=str2bool, default=False, help="for `results`: write nothing, say if it would")
    args, further = parser.parse_known_args()
    rows, every = FOLD_ROWS if args.folds else ROWS, [*ROWS, *FOLD_ROWS]
    if args.only:
        keys = args.only.split(",")
        rows = [r for r in every if r.key in keys]
        if len(rows) != len(keys):
            raise UserError(f"--only {args.only}: choose of {', '.join(r.key for r in every)}")
    if args.command == "prepare":
        for fold in range(1, NUM_FOLDS + 1):
            subprocess.run([str(RECIPE / "prepare.sh"), "--fold", str(fold), *further], check=True)
    elif args.command == "train":
        train(rows, args.exp_root, further)
    elif args.command == "evaluate":
        evaluate_rows(rows, args.exp_root)
    elif args.command == "time":
        write_json(TIMING, time_rows(rows, args.exp_root, args.rounds, further))
        print(TIMING.read_text())
    else:
        write_results(RECIPE / "RESULTS.md", args.check)
        write_headlines(RECIPE.parents[1] / "README.md", RESULTS / "sizes.png", args.check)


if __name__ == "__main__":
    run_main(main)
