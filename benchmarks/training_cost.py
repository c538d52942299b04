#!/usr/bin/env python3
"""What does co-training cost beyond its passes?

An update with k branches is compared with k float passes (forward, CTC, backward) and one optimiser step of the
unquantized model, on the same batch, in one process, interleaved. The last column is the ratio of the medians of
seconds per update; 1.00 would mean that quantizers, KL and switching are free. The share of the quantizers alone is
measured on the same weights.

python benchmarks/training_cost.py --model tiny --frames 420 --utterances 16 --repeats 15
python benchmarks/training_cost.py --model paper --frames 800 --utterances 4 --repeats 5
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter  # noqa: E402

use_project_interpreter()

import torch  # noqa: E402

from lowbit_k2.errors import run_main  # noqa: E402
from lowbit_k2.losses.co_training import BranchOutput, CoTraining, CoTrainingConfig  # noqa: E402
from lowbit_k2.losses.ctc import CtcCriterion  # noqa: E402
from lowbit_k2.models import ConformerConfig, ConformerCtc  # noqa: E402
from lowbit_k2.models.conformer import PRESETS  # noqa: E402
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision  # noqa: E402
from lowbit_k2.recipe.flags import make_parser  # noqa: E402
from lowbit_k2.train.optim import OptimConfig, clip_gradients, make_optimizer, set_rate  # noqa: E402

SYSTEMS = {  # name -> branches; every one is compared with as many float passes
    "naive 1-bit": ("1",),
    "2,1": ("2", "1"),
    "2,1,sp": ("2", "1", "sp"),
}


class Update:
    """A model with its optimiser, and one update on a fixed batch."""

    def __init__(self, args, precisions: tuple[str, ...], passes: int) -> None:
        torch.manual_seed(0)
        co_training = CoTrainingConfig(precisions=precisions)
        bits = co_training.trained_precisions
        quant = QuantConfig.preset("float") if bits == (32,) else QuantConfig.preset(args.quant_config, precisions=bits)
        self.model = ConformerCtc(ConformerConfig.preset(args.model, vocab_size=args.vocab_size)).train()
        quantize_model(self.model, quant)
        self.objective = CoTraining(co_training, quant, self.model.config.num_layers, seed=0)
        self.optimizer = make_optimizer(self.model, OptimConfig())
        set_rate(self.optimizer, 1e-4)
        self.passes = passes
        self.features = torch.randn(args.utterances, args.frames, 80)
        self.lens = torch.full((args.utterances,), args.frames)
        self.targets = [list(range(1, 21)) for _ in range(args.utterances)]
        self.bfloat16 = args.bf16
        self.count = 0

    def forward(self, shared: None) -> BranchOutput:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            return CtcCriterion()(self.model, self.features, self.lens, self.targets)

    def __call__(self) -> float:
        start = time.perf_counter()
        self.count += 1
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.passes):
            self.objective.backward(self.model, self.forward, self.count, num_frames=1000)
        clip_gradients(self.optimizer, 5.0)
        self.optimizer.step()
        return time.perf_counter() - start


def quantizer_seconds(model: torch.nn.Module, repeats: int) -> float:
    """Median seconds to quantize every weight once, forward and backward."""
    owners = [(module, name) for module in model.modules() for name in getattr(module, "parametrizations", {})]
    times = []
    for _ in range(repeats):
        with use_precision(model, 1):
            start = time.perf_counter()
            weights = [getattr(module, name) for module, name in owners]
            torch.autograd.backward(weights, [torch.ones_like(weight) for weight in weights])
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="tiny", choices=list(PRESETS))
    parser.add_argument("--quant-config", default="lossless16")
    parser.add_argument("--vocab-size", type=int, default=500)
    parser.add_argument("--utterances", type=int, default=16)
    parser.add_argument("--frames", type=int, default=420, help="feature frames of each utterance")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(f"torch {torch.__version__}, {args.threads} threads, {args.model}, {args.utterances} x {args.frames} frames,")
    print(f"{'bfloat16' if args.bf16 else 'float32'}, median of {args.repeats} interleaved updates")
    print(f"{'branches':<14}{'passes':>7}{'float s':>10}{'ours s':>10}{'ratio':>8}{'quantizers':>12}")
    for name, precisions in SYSTEMS.items():
        passes = len(precisions)
        ours, reference = Update(args, precisions, 1), Update(args, ("32",), passes)
        ours(), reference()  # warm-up
        times = [(reference(), ours()) for _ in range(args.repeats)]
        base, mine = (statistics.median(column) for column in zip(*times, strict=True))
        share = passes * quantizer_seconds(ours.model, args.repeats) / mine
        print(f"{name:<14}{passes:>7}{base:>10.3f}{mine:>10.3f}{mine / base:>8.2f}{share:>11.1%}", flush=True)


if __name__ == "__main__":
    run_main(main)
