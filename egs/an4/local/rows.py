#!/usr/bin/env python3
"""Train, evaluate and tabulate the rows of RESULTS.md.

./local/rows.py train --exp-root exp/rows --use-bf16 true      # all rows, one after the other; call again to go on
./local/rows.py train --exp-root exp/rows --only float-s1
./local/rows.py evaluate --exp-root exp/rows                   # trained rows: test set, sizes -> results/*.json
./local/rows.py train --only hand16-noise-s1 --noise-dir NOISES # with some of ESC-10's noises; first its float row
./local/rows.py noise --noise-dir NOISES                       # float and 1 bit in noise, dev and test -> results/noise
./local/rows.py audit                                          # every byte of packed files -> results/audit.json
./local/rows.py time --rounds 20                               # seconds per update, interleaved -> timing.json
./local/rows.py results                                        # results/*.json and recogs -> the tables of RESULTS.md
./local/rows.py results --check true                           # are they those?
./local/rows.py prepare --an4-dir an4                          # data of the cross-validation: data/fold-1 ... fold-5
./local/rows.py train --folds true                             # its rows; evaluate --folds true

Every row has the same model, optimiser and augmentation (train.py's defaults); it differs by the flags below.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPE.parents[1]), str(RECIPE), str(RECIPE / "local")]
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import torch
from headlines import write_headlines
from instruments import AUDIT, AUDITED, audit
from noise_tables import CLIPS
from noises import prepare_training_noise, write_clips
from result_files import NOISE, RESULTS, TIMING, noisy_sets, result_path
from systems import (
    BY_BITS,
    BY_BITS_SEED,
    CONDITIONS,
    DEMO,
    FOLD_ROWS,
    NOISY_SETS,
    NOISY_SYSTEMS,
    NUM_FOLDS,
    ROOMS,
    ROWS,
    SEARCH_FLAGS,
    SYSTEMS,
    TRAINED_IN_NOISE,
    Row,
)
from tables import write_results
from train import make_parser as make_training_parser
from train import make_trainer

from lowbit_k2.asr.decoding import run_decode
from lowbit_k2.asr.evaluation import Evaluation, evaluate
from lowbit_k2.asr.exporting import ExportConfig, run_export
from lowbit_k2.asr.model_io import PRETRAINED
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.asr.result_files import keep, sets_left
from lowbit_k2.asr.training import Run, TrainingConfig, set_up_device
from lowbit_k2.data.datamodule import AsrDataModule
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.data.noisy import Condition
from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import read_json, write_json
from lowbit_k2.progress import progress_bar
from lowbit_k2.recipe.add_noise import add_noise
from lowbit_k2.recipe.flags import make_parser, str2bool
from lowbit_k2.recipe.training_flags import read_training_flags
from lowbit_k2.train.checkpoint import load_checkpoint, numbered
from lowbit_k2.train.distributed import DistributedContext
from lowbit_k2.train.update import update


def train(rows: list[Row], exp_root: Path, further: list[str]) -> None:
    """Every row that has no results yet, and first the float row that it begins with."""
    for r in rows:
        if result_path(r).is_file():
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
    """Every finished row that has no results yet, on the test set."""
    for r in rows:
        if r.system.epochs in numbered(exp_root / r.key, "epoch"):
            evaluate_row(r, exp_root, result_path(r))


def evaluate_in_noise(rows: list[Row], exp_root: Path, noise_dir: Path) -> None:
    """Make the noisy copies of dev and test that are not there yet, and evaluate rows on them, and without noise.

    The 1-bit system whose packed file is in pretrained/ needs no training for it.

    Raises:
      UserError: a row is not trained.
    """
    fbank = RECIPE / "data/fbank"
    for split in NOISY_SETS:
        add_noise(fbank, "an4", split, [Condition.parse(name) for name in (*CONDITIONS, *ROOMS)], noise_dir)
    write_clips(CLIPS, noise_dir, {split: load_cuts(fbank, "an4", f"{split}-{CONDITIONS[0]}") for split in NOISY_SETS})
    sets = [name for split in NOISY_SETS for name in noisy_sets(split).values()]
    for r in rows:
        target = result_path(r, NOISE)
        if r.system.epochs in numbered(exp_root / r.key, "epoch"):
            evaluate_row(r, exp_root, target, sets)
        elif r.system.name == DEMO and target.is_file():
            decode_demo(r, exp_root, target, sets)
        else:
            raise UserError(f"{exp_root / r.key} is not trained: ./local/rows.py train --only {r.key}")


def evaluate_row(r: Row, exp_root: Path, target: Path, test_sets: Sequence[str] = ("test",)) -> None:
    """Decode and pack a row on the sets that it has no results of; keep what was recognised beside them."""
    left = sets_left(target, test_sets)
    if not left:
        return
    system = r.system
    evaluations = [
        evaluation
        for name in left
        for evaluation in evaluate(
            decoding(r, exp_root), system.precisions, name, lambda name=name: load_cuts(r.data / "fbank", "an4", name)
        )
    ]
    progress = load_checkpoint(exp_root / r.key / f"epoch-{system.epochs}.pt").meta["progress"]
    described = {
        "row": system.name,
        "label": system.label,
        "seed": r.seed,
        "fold": r.fold,
        "flags": system.flags,
        "reference": Row(SYSTEMS[system.reference], r.seed, r.fold).key,
        "lm_scale": system.lm_scale,
        "date": time.strftime("%Y-%m-%d"),
        "updates": progress["update"],
        "seconds": round(progress["seconds"]),
    }
    keep(target, described, evaluations, exp_root / r.key, several=len(test_sets) > 1)


def decode_demo(r: Row, exp_root: Path, target: Path, test_sets: Sequence[str]) -> None:
    """The same with the model of pretrained/, whose sizes are those of the sets that have results."""
    before = Evaluation(**read_json(target)["evaluations"][0])
    config = replace(decoding(r, exp_root), packed=RECIPE / "pretrained/an4-1bit.safetensors")
    for name in sets_left(target, test_sets):
        found = run_decode(config, lambda name=name: {name: load_cuts(r.data / "fbank", "an4", name)})
        decoded = {method: d for (_, method, _, _), d in found.items()}
        on_disk = before.file_bytes, before.float_bytes
        e = Evaluation.of(before.precision, name, decoded, on_disk, exp_root / r.key)
        keep(target, {}, [e], exp_root / r.key, several=True)


def decoding(r: Row, exp_root: Path) -> DecodeConfig:
    return DecodeConfig(
        r.choice(exp_root),
        decoding_method=",".join(r.system.methods),
        lang_dir=r.lang_dir,
        lm_scale=(r.system.lm_scale,),
        manifest_dir=r.data / "fbank",
        quiet=True,
    )


def training_config(r: Row, exp_root: Path = Path(), further: Sequence[str] = ()) -> TrainingConfig:
    """As train.py takes it from the flags of a row."""
    return read_training_flags(make_training_parser().parse_args([*r.flags(exp_root), *further]))


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
            flags = ["--exp-dir", f"{folder}/{name}", "--tensorboard", "false", *further]
            config = training_config(r, exp_root, flags)
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


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("command", choices=("prepare", "train", "evaluate", "noise", "audit", "time", "results"))
    parser.add_argument("--exp-root", type=Path, default=RECIPE / "exp/rows")
    parser.add_argument("--only", help="names of rows, by commas, e.g. float-s1,naive1-s1,float-f2-s1")
    parser.add_argument("--folds", type=str2bool, default=False, help="the rows of the cross-validation")
    parser.add_argument(
        "--noise-dir", type=Path, help="audio files of ESC-10: to `train` rows in noise, and for `noise`"
    )
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
        if args.noise_dir is not None:
            prepare_training_noise(args.noise_dir, RECIPE / "data")
        train(rows, args.exp_root, further)
    elif args.command == "evaluate":
        evaluate_rows(rows, args.exp_root)
    elif args.command == "noise":
        if not args.only:
            rows = [Row(SYSTEMS[name], 1) for name in (*NOISY_SYSTEMS, *TRAINED_IN_NOISE)]
            rows += dict.fromkeys(Row(SYSTEMS[name], BY_BITS_SEED) for family in BY_BITS for name, _ in family)
        evaluate_in_noise(rows, args.exp_root, args.noise_dir)
    elif args.command == "audit":
        audited = {f"{name}-{bits}": audit(training_config(Row(SYSTEMS[name], 1)), bits) for name, bits in AUDITED}
        write_json(AUDIT, audited)
    elif args.command == "time":
        write_json(TIMING, time_rows(rows, args.exp_root, args.rounds, further))
        print(TIMING.read_text())
    else:
        write_results(RECIPE / "RESULTS.md", args.check)
        write_headlines(RECIPE.parents[1] / "README.md", RESULTS / "sizes.png", args.check)


if __name__ == "__main__":
    run_main(main)
