#!/usr/bin/env python3
"""What reading its weights at every pass costs an LSTM, and what quantizing them costs: ratios to `nn.LSTM`.

    python benchmarks/lstm.py --rounds 20

A pass is forward and backward, of `--layers` layers in training. Passes of all kinds take turns, so that a machine that
is slow for a while is slow for all; the medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import torch
from torch import Tensor, nn

from lowbit_k2.quant import LSTM, QuantConfig, quantize_model, use_precision


def timed(run: Callable[[], Tensor]) -> float:
    """Seconds of one pass, its backward included."""
    start = time.perf_counter()
    run().sum().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 256, "layers": 3, "frames": 100, "batch": 8, "rounds": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = (args.width, args.width, args.layers)
    torchs, ours, low = nn.LSTM(*sizes), LSTM(*sizes), LSTM(*sizes)
    quantize_model(low, QuantConfig.preset("lossless16", precisions=(2, 1)))
    inputs = torch.randn(args.frames, args.batch, args.width)

    def quantized(bits: int) -> float:
        with use_precision(low, bits):
            return timed(lambda: low(inputs)[0])

    kinds = {
        "nn.LSTM": lambda: timed(lambda: torchs(inputs)[0]),
        "ours": lambda: timed(lambda: ours(inputs)[0]),
        "ours at 2 bits": lambda: quantized(2),
        "ours at 1 bit": lambda: quantized(1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for round_number in range(args.rounds + 1):
        for name, run in kinds.items():
            taken = run()
            if round_number:  # the first one warms up
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:15s} {1000 * median:8.1f} ms  {median / medians['nn.LSTM']:.2f}x")


if __name__ == "__main__":
    main()
