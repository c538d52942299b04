#!/usr/bin/env python3
"""What does one application of the General Quantizer cost: seconds, and memory beside the model?

Every matrix of an untrained model is treated as `train.py --quantizer gq` does it every `--gq-every` updates: its mu is
chosen anew, then its weights are overwritten; soft (inverse width `--alpha`) or, as at the end of a training, hard. All
kinds take turns, each on the same weights, on one thread. Seconds are medians, of the clock and of the processor's own
time, which other work on the machine does not lengthen; memory is what the process grows by.

    python benchmarks/general_quantizer.py --model paper --bits 4 5 8 --rounds 5
"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import torch

from lowbit_k2.errors import run_main
from lowbit_k2.models import CtcConfig, make_model
from lowbit_k2.processes import forget_peak, peak_memory
from lowbit_k2.progress import progress_bar
from lowbit_k2.quant import Allocation, QuantConfig, quantize_model
from lowbit_k2.quant.general import GQ_SCALES, GeneralQuantization
from lowbit_k2.recipe.flags import make_parser
from lowbit_k2.tables import text_table


def measure(general: GeneralQuantization, alpha: float | None) -> tuple[float, float, float]:
    """Seconds, seconds of the processor, and MB of growth, of one application; the weights are put back."""
    before = [weight.clone() for weight, _ in general.tensors.values()]
    forget_peak()
    memory, start, busy = peak_memory(), time.perf_counter(), time.process_time()
    general.apply(alpha)
    seconds, busy, growth = time.perf_counter() - start, time.process_time() - busy, peak_memory() - memory
    with torch.no_grad():
        for (weight, _), value in zip(general.tensors.values(), before, strict=True):
            weight.copy_(value)
    return seconds, busy, growth / 1e6


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="paper", help="preset of an encoder with a CTC head")
    parser.add_argument("--vocab-size", type=int, default=500)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 5, 8])
    parser.add_argument("--gq-scale", choices=GQ_SCALES, default="absmax")
    parser.add_argument("--alpha", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = make_model(CtcConfig.preset(args.model, vocab_size=args.vocab_size))
    config = QuantConfig.preset("mixed", precisions=tuple(args.bits), quantizer="gq", scale=args.gq_scale)
    quantize_model(model, config)
    of_bits = {bits: GeneralQuantization(model, [Allocation.uniform(bits)]) for bits in args.bits}
    kinds = list(product(of_bits, (args.alpha, None)))
    found: dict[tuple[int, float | None], list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    for round_number in progress_bar(range(args.rounds + 1), "rounds", leave=False):
        for bits, alpha in kinds:
            taken = measure(of_bits[bits], alpha)
            if round_number:  # the first one warms up
                found[bits, alpha].append(taken)
    weights = sum(weight.numel() for weight, _ in of_bits[args.bits[0]].tensors.values())
    rows = []
    for (bits, alpha), taken in found.items():
        seconds, busy, growth = (statistics.median(values) for values in zip(*taken, strict=True))
        kind = "hard" if alpha is None else f"soft, {alpha:g}"
        rows.append([bits, kind, f"{seconds:.2f}", f"{busy:.2f}", f"{1e9 * busy / weights:.0f}", f"{growth:.0f}"])
    print(f"{args.model}: {weights / 1e6:.1f} M weights in {len(of_bits[args.bits[0]].tensors)} matrices")
    print(text_table(["bits", "assignment", "seconds", "processor", "ns/weight", "MB beside"], rows))


if __name__ == "__main__":
    run_main(main)
