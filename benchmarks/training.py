#!/usr/bin/env python3
"""What does co-training cost beyond its passes, in time and in memory?

An update with k branches is compared with k float passes (forward, loss, backward) and one optimiser step of the
unquantized model, on the same batch, in one process, interleaved. Seconds are medians; `ratio` is the median over
pairs of neighbouring updates, so that a machine that is slower for a while does not count. 1.00 would mean that
quantizers, KL and switching are free. `quantizers` is the share of the update that they take alone. Memory is the peak
of one update: on a GPU as its allocator counts it, on a CPU the growth of a fresh process from before the model is
built.

python benchmarks/training.py --model tiny --frames 420 --utterances 16 --repeats 15
python benchmarks/training.py --model paper --frames 800 --utterances 4 --repeats 5 --objective ctc
python benchmarks/training.py --model paper --frames 1500 --utterances 8 16 32 64 --bf16      # on a GPU
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import torch

from lowbit_k2.core.encoders import ConformerConfig
from lowbit_k2.data.batch import Batch
from lowbit_k2.errors import run_main
from lowbit_k2.losses.co_training import CoTraining, CoTrainingConfig
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.losses.rnnt import KINDS, RnntConfig, RnntCriterion
from lowbit_k2.models import CtcConfig, TransducerConfig, make_model
from lowbit_k2.processes import forget_peak, peak_memory
from lowbit_k2.progress import progress_bar
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision
from lowbit_k2.recipe.flags import make_parser
from lowbit_k2.tables import text_table
from lowbit_k2.train.optim import OptimConfig, clip_gradients, make_optimizer, set_rate
from lowbit_k2.train.trainer import LoopConfig, make_scaler
from lowbit_k2.train.update import run_branches

SYSTEMS = ("1", "2,1", "2,1,sp")  # each is compared with as many float passes
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Update:
    """A model with its optimiser, and one update on a fixed batch."""

    def __init__(
        self, args: argparse.Namespace, objective: str, precisions: tuple[str, ...], passes: int, utterances: int
    ) -> None:
        torch.manual_seed(0)
        co_training = CoTrainingConfig(precisions=precisions)
        bits = co_training.trained_precisions
        quant = QuantConfig.preset("float") if bits == (32,) else QuantConfig.preset(args.quant_config, precisions=bits)
        kind = CtcConfig if objective == "ctc" else TransducerConfig
        self.model = make_model(kind.preset(args.model, vocab_size=args.vocab_size)).train()
        quantize_model(self.model, quant)
        self.model.to(DEVICE)
        self.criterion = CtcCriterion() if objective == "ctc" else RnntCriterion(RnntConfig(loss=args.rnnt_loss))
        self.co_training = CoTraining(co_training, self.model.config.num_layers, quant.layer_prefix, seed=0)
        self.optimizer = make_optimizer(self.model, OptimConfig())
        set_rate(self.optimizer, 1e-4)
        self.passes = passes
        targets = [[1 + n % (args.vocab_size - 1) for n in range(args.frames // 33)]] * utterances  # 3 a second
        names = [""] * utterances
        lens = torch.full((utterances,), args.frames)
        self.batch = Batch(torch.randn(utterances, args.frames, 80), lens, names, names, targets).to(DEVICE)
        # what `run_branches` reads of a trainer
        self.device, self.scaler, self.teacher, self.drawn = DEVICE, make_scaler(enabled=False), None, None
        self.config = LoopConfig(amp="bfloat16" if args.bf16 else "float32")
        self.count = 0

    def __call__(self) -> float:
        """Seconds of one update."""
        synchronize()
        start = time.perf_counter()
        self.count += 1
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.passes):
            run_branches(self, self.batch, self.count, 1000.0)
        clip_gradients(self.optimizer, 5.0)
        self.optimizer.step()
        synchronize()
        return time.perf_counter() - start


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def quantizer_seconds(model: torch.nn.Module, repeats: int) -> float:
    """Median seconds to quantize every weight once, forward and backward."""
    owners = [(module, name) for module in model.modules() for name in getattr(module, "parametrizations", {})]
    times = []
    for _ in range(repeats):
        with use_precision(model, 1):
            synchronize()
            start = time.perf_counter()
            weights = [getattr(module, name) for module, name in owners]
            torch.autograd.backward(weights, [torch.ones_like(weight) for weight in weights])
            synchronize()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_megabytes(args: argparse.Namespace, objective: str, system: str, utterances: int) -> float:
    """Peak memory of an update, measured in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", objective, system, str(utterances)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def print_memory(args: argparse.Namespace, objective: str, system: str, utterances: int) -> None:
    """What `peak_megabytes` reads."""
    forget_peak()  # that of the imports
    before = peak_memory()
    update = Update(args, objective, tuple(system.split(",")), 1, utterances)
    for _ in range(2):  # the optimiser's moments are there from the first on
        update()
    if DEVICE.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print((peak_memory() - before) / 1e6)


HEAD = ("loss", "batch", "bits", "passes", "float s", "ours s", "ratio", "quantizers", "float MB", "ours MB", "ratio")


def measure(args: argparse.Namespace, objective: str, system: str, utterances: int) -> list[object]:
    """A row of the table."""
    precisions = tuple(system.split(","))
    passes = len(precisions)
    ours = Update(args, objective, precisions, 1, utterances)
    reference = Update(args, objective, ("32",), passes, utterances)
    ours(), reference()  # warm-up
    times = [(reference(), ours()) for _ in range(args.repeats)]
    base, mine = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    share = passes * quantizer_seconds(ours.model, args.repeats) / mine
    memory = [peak_megabytes(args, objective, precision, utterances) for precision in ("32", system)]
    cells = [objective, utterances, system, passes, f"{base:.3f}", f"{mine:.3f}", f"{ratio:.2f}", f"{share:.1%}"]
    return [*cells, f"{memory[0]:.0f}", f"{memory[1]:.0f}", f"{memory[1] / memory[0]:.2f}"]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="tiny", choices=list(ConformerConfig.presets))
    parser.add_argument("--objective", nargs="+", default=["ctc", "rnnt"], choices=("ctc", "rnnt"))
    parser.add_argument(
        "--precisions", nargs="+", default=SYSTEMS, help="branches, as train.py's; several: a line each"
    )
    parser.add_argument("--rnnt-loss", default="pruned", choices=KINDS)
    parser.add_argument("--quant-config", default="lossless16")
    parser.add_argument("--vocab-size", type=int, default=500)
    parser.add_argument(
        "--utterances", type=int, nargs="+", default=[16], help="in a batch; several for a scaling line"
    )
    parser.add_argument("--frames", type=int, default=420, help="feature frames of each utterance")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # as training does
    if args.memory_of:
        objective, system, utterances = args.memory_of
        return print_memory(args, objective, system, int(utterances))

    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {args.threads} threads"
    print(f"torch {torch.__version__}, {where}; {args.model}, {args.frames} frames an utterance,")
    print(f"{'bfloat16' if args.bf16 else 'float32'}, median of {args.repeats} interleaved updates")
    systems = list(product(args.objective, args.precisions, args.utterances))
    rows = [measure(args, *system) for system in progress_bar(systems, leave=False)]
    print(text_table(HEAD, rows))


if __name__ == "__main__":
    run_main(main)
