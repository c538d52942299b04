"""Seconds that the matrices of a packed HuBERT's Transformer take in the packed runtime, beside torch's in float32."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from lowbit_k2.core.operations import LINEARS
from lowbit_k2.errors import UserError
from lowbit_k2.packed import read_packed
from lowbit_k2.runtime import PackedMatrix
from lowbit_k2.runtime.native import library


class MatrixTimes(NamedTuple):
    """CPU seconds of all matrices once, medians."""

    packed: float
    torch: float


@torch.inference_mode()
def time_matrices(path: Path, frames: int, mode: str, turns: int = 7) -> MatrixTimes:
    """The matrices of attention and feed-forward modules, in turns, on one thread.

    Args:
      path: a packed file.
      frames: rows that each is multiplied with.
      mode: arithmetic of the runtime, see `PackedMatrix.matmul`.

    Raises:
      UserError: the runtime's library cannot be built, or the file has no such matrices.
    """
    if library() is None:
        raise UserError("the native library could not be built: install g++")
    tensors = [t for t in read_packed(path).tensors if t.name.endswith(".weight") and t.name.split(".")[-2] in LINEARS]
    if not tensors:
        raise UserError(f"{path} has no Transformer of a HuBERT")
    random, runs = np.random.default_rng(0), []
    for tensor in tensors:
        x = random.standard_normal((frames, tensor.shape[1]), dtype=np.float32)
        runs.append((PackedMatrix(tensor), x, torch.from_numpy(x), torch.from_numpy(tensor.dequantize())))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns + 1):
        starts = [time.process_time()]
        for matrix, x, _, _ in runs:
            matrix.matmul(x, mode)
        starts.append(time.process_time())
        for _, _, x, weight in runs:
            F.linear(x, weight)
        starts.append(time.process_time())
        for taken, start, end in zip(times, starts, starts[1:], strict=False):
            taken.append(end - start)
    return MatrixTimes(*(statistics.median(taken[1:]) for taken in times))  # the first turn only warms up
