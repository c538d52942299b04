#!/usr/bin/env python3
"""How fast are packed weights beside torch's and ONNX Runtime's? A stack `x += W2 relu(W1 x)`, in every mode, precision
and instruction set.

python benchmarks/kernels.py                                # 12 layers of 512/2048 at 1, 16, 100 and 400 frames
python benchmarks/kernels.py --frames 16 --isa avx2 --encodings binary --threads 2
python benchmarks/kernels.py --encodings int8,index5,index5-learned        # even grid, General Quantizer, k-means

Medians of runs that take turns, so that a machine that is busy for a while is so for all of them. Ratios are to torch
float32 in the same turns. ONNX Runtime takes part where it and onnx are installed (requirements-onnx.txt): dynamic int8
as its quantize_dynamic makes it, and MatMulNBits of 4 and 2 bits with activations of 8 (2 bits from 1.28 on). To hold
torch to AVX2 on a CPU that has more, set ATEN_CPU_CAPABILITY=avx2, MKL_ENABLE_INSTRUCTIONS=AVX2 and
ONEDNN_MAX_CPU_ISA=AVX2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import cpu_name, use_project_interpreter

use_project_interpreter()

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.core.encodings import ENCODINGS
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.packed import PackedTensor
from lowbit_k2.processes import wait_for_rest
from lowbit_k2.quant.codebook import cluster, nearest
from lowbit_k2.quant.soft_assignment import mu_law_table
from lowbit_k2.runtime import PackedMatrix
from lowbit_k2.runtime.matrix import feed_forward
from lowbit_k2.runtime.native import MODES, available_isas, library
from lowbit_k2.tables import text_table

Run = Callable[[np.ndarray], object]
TURN = 0.02  # seconds
LEARNED = "-learned"
TABLES = [name for name, encoding in ENCODINGS.items() if encoding.is_index]
KINDS = [*(name for name, encoding in ENCODINGS.items() if encoding.codes), *(name + LEARNED for name in TABLES)]


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


def onnx_runs(width: int, hidden: int, layers: int, threads: int) -> dict[str, Run]:
    """ONNX Runtime's dynamic int8 and MatMulNBits; none where it or onnx is missing, which is said."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        print(f"without ONNX Runtime: {error}")
        return {}
    shapes = [(width, hidden), (hidden, width)]
    rng = np.random.default_rng(0)

    def session(model: str | bytes) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        run = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda x: run.run(None, {"x0": x})

    def stack(matrix: Callable[[str, str, int, int, list], object]) -> bytes:
        """The graph; matrix(input, output, inputs, outputs, constants) is the node of a product."""
        nodes, constants = [], []
        for i in range(layers):
            for j, (inputs, outputs) in enumerate(shapes):
                nodes.append(matrix((f"x{i}", f"r{i}")[j], f"y{i}.{j}", inputs, outputs, constants))
                nodes.append(
                    helper.make_node("Add", [f"x{i}", f"y{i}.1"], [f"x{i + 1}"])
                    if j
                    else helper.make_node("Relu", [f"y{i}.0"], [f"r{i}"])
                )
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["m", width]) for n in ("x0", f"x{layers}")]
        graph = helper.make_graph(nodes, "stack", [ends[0]], [ends[1]], constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()

    def dense(x: str, y: str, inputs: int, outputs: int, constants: list) -> object:
        weight = rng.normal(size=(inputs, outputs)).astype(np.float32) * 0.01
        constants.append(numpy_helper.from_array(weight, f"w.{y}"))
        return helper.make_node("MatMul", [x, f"w.{y}"], [y])

    def packed(bits: int) -> Callable:
        def node(x: str, y: str, inputs: int, outputs: int, constants: list) -> object:
            numbers = rng.integers(0, 256, (outputs, inputs // 64, 8 * bits)).astype(np.uint8)
            steps = np.full((outputs, inputs // 64), 0.01, np.float32)
            constants.extend((numpy_helper.from_array(numbers, f"w.{y}"), numpy_helper.from_array(steps, f"s.{y}")))
            sizes = dict(K=inputs, N=outputs, bits=bits, block_size=64, accuracy_level=4)
            return helper.make_node("MatMulNBits", [x, f"w.{y}", f"s.{y}"], [y], domain="com.microsoft", **sizes)

        return node

    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        float_file, int8_file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        float_file.write_bytes(stack(dense))
        quantize_dynamic(float_file, int8_file, weight_type=QuantType.QInt8)
        runs[f"ORT {onnxruntime.__version__} dynamic int8"] = session(str(int8_file))
    for bits in (4, 2):
        try:
            run = session(stack(packed(bits)))
            run(np.zeros((1, width), np.float32))
            runs[f"ORT MatMulNBits, {bits} bits"] = run
        except Exception as error:  # each version of ONNX Runtime has errors of its own
            print(f"without ONNX Runtime's {bits} bits: {str(error).splitlines()[0][:100]}")
    return runs


def random_matrix(kind: str, outputs: int, inputs: int, seed: int) -> PackedMatrix:
    """kind: an encoding; one of places in a table has that of the General Quantizer, with LEARNED behind it any."""
    encoding, rng = kind.removesuffix(LEARNED), np.random.default_rng(seed)
    if ENCODINGS[encoding].is_index:
        bits, weights = ENCODINGS[encoding].bits, torch.from_numpy(rng.normal(size=(outputs, inputs)))
        table = cluster(weights, 2**bits) if kind != encoding else mu_law_table(torch.tensor(8.0), bits) * weights.max()
        return PackedMatrix(
            PackedTensor.from_codes(
                "w", "", encoding, nearest(weights, table).numpy(), np.float32(1), table=table.numpy()
            )
        )
    low, high = ENCODINGS[encoding].codes
    codes = rng.integers(low, high + 1, (outputs, inputs)).astype(np.int8)
    if encoding == "binary":
        codes[codes == 0] = 1
    return PackedMatrix(PackedTensor.from_codes("w", "", encoding, codes, np.float32(0.01)))


class Packed:
    """The stack in packed weights."""

    def __init__(self, encoding: str, width: int, hidden: int, layers: int) -> None:
        self.layers = [
            (random_matrix(encoding, hidden, width, 2 * i), random_matrix(encoding, width, hidden, 2 * i + 1))
            for i in range(layers)
        ]
        self.nbytes = sum(w1.nbytes + w2.nbytes for w1, w2 in self.layers)

    def run(self, x: np.ndarray, isa: str, mode: str, threads: int) -> np.ndarray:
        library().lbk_use_isa(isa.encode())
        x = x.copy()
        for w1, w2 in self.layers:
            feed_forward(w1, w2, x, "relu", mode=mode, threads=threads, out=x, add=True)
        return x


def seconds(
    runs: dict[str, Run],
    x: np.ndarray,
    repeats: int,
    clock: Callable[[], float],
    typical: Callable[[Sequence[float]], float],
) -> dict[str, float]:
    """Of a call by name: `typical` of the turns. A turn is calls of TURN seconds together; the first counts them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    calls = dict.fromkeys(runs, 1)
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            for _ in range(calls[name]):
                run(x)
            taken = (clock() - start) / calls[name]
            wait_for_rest()
            if turn:
                times[name].append(taken)
            else:
                calls[name] = max(1, int(TURN / taken))
    return {name: typical(taken) for name, taken in times.items()}


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
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the process's own time, where other jobs share its CPUs"
    )
    parser.add_argument(
        "--fastest",
        action="store_true",
        help="the fastest turn of each, not the median: for CPUs that go at two speeds",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encodings = one_of(KINDS, "--encodings")(args.encodings)
    runs = torch_runs(args.width, args.hidden, args.layers)
    runs |= onnx_runs(args.width, args.hidden, args.layers, args.threads)
    sizes = {}
    for encoding in encodings:
        stack = Packed(encoding, args.width, args.hidden, args.layers)
        for isa in one_of(isas, "--isa")(args.isa):
            for mode in MODES:
                name = f"{encoding} {mode}, {isa}"
                sizes[name] = f"{stack.nbytes / 2**20:.1f}"
                runs[name] = lambda x, s=stack, i=isa, m=mode: s.run(x, i, m, args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    columns = []
    for frames in args.frames:
        x = np.random.default_rng(0).normal(size=(frames, args.width)).astype(np.float32)
        columns.append(seconds(runs, x, args.repeats, clock, min if args.fastest else statistics.median))
    rows = [
        [name, sizes.get(name, ""), *(f"{column['torch float32'] / column[name]:.2f}" for column in columns)]
        for name in runs
    ]
    milliseconds = [f"{column['torch float32'] * 1e3:.1f}" for column in columns]
    turn = "the fastest turn" if args.fastest else "medians"
    size = f"{args.layers} x {args.width}/{args.hidden}"
    print(f"{cpu_name() or 'unknown CPU'}, {args.threads} threads, {turn}, torch {torch.__version__}: {size}")
    headers = ["speed over torch float32", "MiB", *(f"M={frames}" for frames in args.frames)]
    print(text_table(headers, [["torch float32, ms", "", *milliseconds], *rows]))


if __name__ == "__main__":
    run_main(main)
