"""Scale statistics: the detached s in `effective step = alpha * s`, one number per group of weights.

    2std-clipped    min(2 * std(W), 1) / Qp    recomputed at every forward. The code released with "Towards one-bit ASR"
                                               (arXiv 2505.21245) uses it at 1 and 2 bits, where Qp = 1; dividing by Qp
                                               keeps the clipping range 2*std at other precisions.
    absmean         mean|W|                    set once. BitNet b1.58, and the binarised USM (arXiv 2406.02887).
    lsq             2 * mean|W| / sqrt(Qp)     set once. Learned Step Size Quantization (arXiv 1902.08153).
    running-absmax  running max|W| / Qp        2505.21245's code, for the 4-bit convolution module. "Running" here: in
                                               train mode every forward moves a buffer, m <- 0.9 m + 0.1 max|W|; in
                                               eval mode the buffer is used as it is. It starts at max|W|.

"Set once" means when `quantize_model` is called: from then on alpha alone moves the step. The buffers hold mean|W| or
max|W|; what depends on the precision (Qp) is applied on the way out, so one buffer serves all precisions of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit_k2.core.grids import BLOCK, max_code

STATISTICS = ("2std-clipped", "absmean", "lsq", "running-absmax")
STORED_STATISTICS = ("absmean", "lsq", "running-absmax")
RUNNING_MOMENTUM = 0.9
SMALLEST_SCALE = 1e-8  # an all-zero group still has a step, so that 0 / step is 0 and not NaN


def scale_from_statistic(statistic: Tensor, name: str, bits: int) -> Tensor:
    """s of each group from the statistic `measure` returned (or a buffer of it). Shape kept."""
    top = max_code(bits)
    if name == "2std-clipped":
        scale = statistic.clamp(max=1.0) / top
    elif name == "absmean":
        scale = statistic
    elif name == "lsq":
        scale = 2.0 * statistic / math.sqrt(top)
    else:
        assert name == "running-absmax", name
        scale = statistic / top
    return scale.clamp(min=SMALLEST_SCALE)


@torch.no_grad()
def measure(weight: Tensor, name: str, granularity: str) -> Tensor:
    """The part of statistic `name` that is independent of the precision, per group: 2 std, mean|W| or max|W|.

    Each row is reduced in the weight's own type by one thread and the rows are combined in float64, so that the
    result does not depend on the number of threads (a step that did would make exported codes irreproducible).

    Returns: shape `group_shape(weight.shape, granularity)`, type of `weight`.
    """
    values, counts = _grouped(weight, granularity)  # (*groups, n); for "tensor" the groups are rows, merged below
    whole = granularity == "tensor"
    if name == "running-absmax":
        low, high = torch.aminmax(values) if whole else torch.aminmax(values, dim=-1)
        return torch.maximum(high, -low)
    if name == "2std-clipped":
        if whole:
            return _two_deviations([values])[0]
        squares = torch.linalg.vector_norm(values, dim=-1).double().square()
        return (2.0 * _deviation(values.sum(-1).double(), squares, counts)).to(weight.dtype)
    assert name in ("absmean", "lsq"), name
    sums = values.abs().sum(-1).double()
    return ((sums.sum() if whole else sums) / counts).to(weight.dtype)


@torch.no_grad()
def measure_tensors(weights: Sequence[Tensor], name: str) -> Tensor:
    """`measure` of several weights of one type and device, granularity "tensor": shape (len(weights),), bit for bit.

    The numbers after the sums are worked out for all tensors at once, for the sake of small models.
    """
    if name == "2std-clipped":
        return _two_deviations([_grouped(weight, "tensor")[0] for weight in weights])
    return torch.stack([measure(weight, name, "tensor") for weight in weights])


def _two_deviations(rows: Sequence[Tensor]) -> Tensor:
    """2 std of each whole tensor, given as (rows, cols): shape (len(rows),)."""
    sizes = [len(r) for r in rows]
    sums = torch.cat([r.sum(-1) for r in rows]).double().split(sizes)
    squares = torch.cat([torch.linalg.vector_norm(r, dim=-1) for r in rows]).double().square().split(sizes)
    counts = torch.tensor([float(r.numel()) for r in rows], dtype=torch.float64).to(rows[0].device)
    totals = (torch.stack([part.sum() for part in parts]) for parts in (sums, squares))
    return (2.0 * _deviation(*totals, counts)).to(rows[0].dtype)


def _deviation(sums: Tensor, squares: Tensor, counts: Tensor | int) -> Tensor:
    """Unbiased standard deviation, as torch.std; a group of a single weight w, which has none, gives |w|.

    From sums and sums of squares, three times faster than torch.std. The relative error is about
    1e-7 * (1 + mean^2 / variance): nothing for weights, whose mean is near zero beside their deviation.
    """
    several = (counts > 1).double() if isinstance(counts, Tensor) else float(counts > 1)
    centred = squares - sums.square() * (several / counts)
    return (centred.clamp(min=0.0) / (counts - several)).sqrt()


def _grouped(weight: Tensor, granularity: str) -> tuple[Tensor, Tensor | int]:
    """Values with the weights of a group on the last axis, and the number of true weights in each group.

    tensor, channel: (rows, cols); block64: (rows, blocks, 64), zero-padded, which no sum or maximum notices.
    """
    rows = weight.detach().reshape(len(weight), -1)  # (rows, cols)
    num_cols = rows.shape[1]
    if granularity != "block64":
        return rows, weight.numel() if granularity == "tensor" else num_cols
    padded = F.pad(rows, (0, -num_cols % BLOCK)).view(len(rows), -1, BLOCK)  # (rows, blocks, 64)
    starts = torch.arange(padded.shape[1], device=rows.device) * BLOCK
    return padded, (num_cols - starts).clamp(max=BLOCK).double()
