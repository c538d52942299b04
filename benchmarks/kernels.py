#!/usr/bin/env python3
"""How fast are packed weights beside torch's? A stack `x += W2 relu(W1 x)`, every mode, precision and instruction set.

python benchmarks/kernels.py                                # 12 layers of 512/2048 at 1, 16, 100 and 400 frames
python benchmarks/kernels.py --frames 16 --isa avx2 --encodings binary --threads 2

Medians of runs that take turns, so that a machine that is busy for a while is so for all of them. Ratios are to torch
float32 in the same turns. To hold torch to AVX2 on a CPU that has more, set ATEN_CPU_CAPABILITY=avx2,
MKL_ENABLE_INSTRUCTIONS=AVX2 and ONEDNN_MAX_CPU_ISA=AVX2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.core.encodings import ENCODINGS
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.packed import PackedTensor
from lowbit_k2.runtime import PackedMatrix
from lowbit_k2.runtime.native import MODES, available_isas, library
from lowbit_k2.tables import text_table

Run = Callable[[np.ndarray], object]


class Feed(nn.Module):
    """One layer of the stack."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.w2(F.relu(self.w1(x)))


def torch_runs(width: int, hidden: int, layers: int) -> dict[str, Run]:
    """torch in float32, in bfloat16, and with dynamic int8 where it has an engine."""
    stack = nn.Sequential(*(Feed(width, hidden) for _ in range(layers))).eval()
    half = nn.Sequential(*(Feed(width, hidden) for _ in range(layers))).eval().bfloat16()
    runs = {"torch float32": lambda x: stack(torch.from_numpy(x))}
    runs["torch bfloat16"] = lambda x: half(torch.from_numpy(x).bfloat16())
    if torch.backends.quantized.supported_engines != ["none"]:
        warnings.simplefilter("ignore")  # that it is deprecated
        int8 = torch.ao.quantization.quantize_dynamic(stack, {nn.Linear}, dtype=torch.qint8)
        runs["torch dynamic int8"] = lambda x: int8(torch.from_numpy(x))
    return runs


def random_matrix(encoding: str, outputs: int, inputs: int, seed: int) -> PackedMatrix:
    low, high = ENCODINGS[encoding].codes
    codes = np.random.default_rng(seed).integers(low, high + 1, (outputs, inputs)).astype(np.int8)
    if encoding == "binary":
        codes[codes == 0] = 1
    return PackedMatrix(PackedTensor.from_codes("w", "", encoding, codes, np.float32(0.01)))


class Packed:
    """The stack in packed weights, with buffers for as many frames as came last."""

    def __init__(self, encoding: str, width: int, hidden: int, layers: int) -> None:
        self.layers = [
            (random_matrix(encoding, hidden, width, 2 * i), random_matrix(encoding, width, hidden, 2 * i + 1))
            for i in range(layers)
        ]
        self.nbytes = sum(w1.nbytes + w2.nbytes for w1, w2 in self.layers)
        self.h = self.y = np.empty((0, 0), np.float32)

    def run(self, x: np.ndarray, isa: str, mode: str, threads: int) -> np.ndarray:
        library().lbk_use_isa(isa.encode())
        if len(self.h) != len(x):
            self.h, self.y = (np.empty((len(x), w.shape[0]), np.float32) for w in self.layers[0])
        x = x.copy()
        for w1, w2 in self.layers:
            h = w1.matmul(x, mode, threads=threads, out=self.h)
            np.maximum(h, 0, out=h)
            x += w2.matmul(h, mode, threads=threads, out=self.y)
        return x


def medians(runs: dict[str, Run], x: np.ndarray, repeats: int) -> dict[str, float]:
    """Seconds by name; the first turn is left out."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run(x)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def one_of(known: Sequence[str], flag: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        wrong = [name for name in names if name not in known]
        if wrong:
            raise UserError(f"{flag} {wrong[0]}: take some of {', '.join(known)}")
        return names

    return parse


@torch.inference_mode()
def main() -> None:
    loaded = library()
    if loaded is None:
        raise UserError("the native library could not be built: install g++")
    isas = [name for name in available_isas(loaded) if name != "numpy"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 16, 100, 400])
    parser.add_argument("--encodings", default="binary,ternary,int4,int8")
    parser.add_argument("--isa", default=",".join(isas))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encodings = one_of([n for n, e in ENCODINGS.items() if e.codes and not e.is_index], "--encodings")(args.encodings)
    runs = torch_runs(args.width, args.hidden, args.layers)
    sizes = {}
    for encoding in encodings:
        stack = Packed(encoding, args.width, args.hidden, args.layers)
        for isa in one_of(isas, "--isa")(args.isa):
            for mode in MODES:
                name = f"{encoding} {mode}, {isa}"
                sizes[name] = f"{stack.nbytes / 2**20:.1f}"
                runs[name] = lambda x, s=stack, i=isa, m=mode: s.run(x, i, m, args.threads)
    columns = []
    for frames in args.frames:
        x = np.random.default_rng(0).normal(size=(frames, args.width)).astype(np.float32)
        columns.append(medians(runs, x, args.repeats))
    rows = [
        [name, sizes.get(name, ""), *(f"{column['torch float32'] / column[name]:.2f}" for column in columns)]
        for name in runs
    ]
    milliseconds = [f"{column['torch float32'] * 1e3:.1f}" for column in columns]
    print(
        f"{cpu_name()}, {args.threads} threads, torch {torch.__version__}: {args.layers} x {args.width}/{args.hidden}"
    )
    headers = ["speed over torch float32", "MiB", *(f"M={frames}" for frames in args.frames)]
    print(text_table(headers, [["torch float32, ms", "", *milliseconds], *rows]))


if __name__ == "__main__":
    run_main(main)
