"""Scale statistics: the detached s in `effective step = alpha * s`, one number per group of weights.

    2std-clipped    min(2 * std(W), 1) / Qp    recomputed at every forward. The code released with "Towards one-bit ASR"
                                               (arXiv 2505.21245) uses it at 1 and 2 bits, where Qp = 1; dividing by Qp
                                               keeps the clipping range 2*std at other precisions.
    absmean         mean|W|                    set once. BitNet b1.58, and the binarised USM (arXiv 2406.02887).
    lsq             2 * mean|W| / sqrt(Qp)     set once. Learned Step Size Quantization (arXiv 1902.08153).
    running-absmax  running max|W| / Qp        2505.21245's code, for the 4-bit convolution module. "Running" here: in
                                               train mode every forward moves a buffer, m <- 0.9 m + 0.1 max|W|; in
                                               eval mode the buffer is used as it is. It starts at max|W|.
    fitted          the step itself            set once, to mean|W|, and anew by whoever fits steps to weights
                                               (`LinearQuantizer.set_steps`): ADMM, see admm.py.

"Set once" means when `quantize_model` is called: from then on alpha alone moves the step. The buffers hold mean|W| or
max|W|; what depends on the precision (Qp) is applied on the way out, so one buffer serves all precisions of a tensor.
`register_statistic` adds others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit_k2.core.grids import BLOCK, max_code
from lowbit_k2.errors import UserError

UPDATES = ("always", "once", "running")
RUNNING_MOMENTUM = 0.9
FITTED = "fitted"
SMALLEST_SCALE = 1e-8  # an all-zero group still has a step, so that 0 / step is 0 and not NaN


@dataclass(frozen=True)
class Statistic:
    """One way to find s.

    measure: (weight, granularity) -> what does not depend on the precision, shape
      `group_shape(weight.shape, granularity)`, type of `weight`; see `grouped`.
    scale: (what `measure` gave, bits) -> s, same shape.
    updates: "always", measured at every forward; "once", when the model is quantized; "running", a moving average of
      the forwards in train mode. The last two are kept in the quantizer's buffer `statistic`.
    """

    measure: Callable[[Tensor, str], Tensor]
    scale: Callable[[Tensor, int], Tensor]
    updates: str = "always"

    @property
    def is_stored(self) -> bool:
        return self.updates != "always"


STATISTICS: dict[str, Statistic] = {}


def register_statistic(
    name: str,
    measure: Callable[[Tensor, str], Tensor],
    scale: Callable[[Tensor, int], Tensor],
    updates: str = "always",
) -> None:
    """Make a statistic known as `TensorScheme(scale=name)`, in every process that reads such a config.

    Raises:
      UserError: the name is taken, or `updates` is unknown; see `Statistic`.
    """
    if name in STATISTICS:
        raise UserError(f"scale statistic {name!r} is there already: choose another name")
    if updates not in UPDATES:
        raise UserError(f"scale statistic {name!r}: updates {updates!r}: choose one of {', '.join(UPDATES)}")
    STATISTICS[name] = Statistic(measure, scale, updates)


def scale_from_statistic(statistic: Tensor, name: str, bits: int) -> Tensor:
    """s of each group from the statistic `measure` returned (or a buffer of it). Shape kept."""
    return STATISTICS[name].scale(statistic, bits).clamp(min=SMALLEST_SCALE)


@torch.no_grad()
def measure(weight: Tensor, name: str, granularity: str) -> Tensor:
    """The part of statistic `name` that is independent of the precision, per group.

    Each row is reduced in the weight's own type by one thread and the rows are combined in float64, so that the
    result does not depend on the number of threads (a step that did would make exported codes irreproducible).

    Returns: shape `group_shape(weight.shape, granularity)`, type of `weight`.
    """
    return STATISTICS[name].measure(weight, granularity)


def _two_std(weight: Tensor, granularity: str) -> Tensor:
    values, counts = grouped(weight, granularity)
    if granularity == "tensor":
        return _two_deviations([values])[0]
    squares = torch.linalg.vector_norm(values, dim=-1).double().square()
    return (2.0 * _deviation(values.sum(-1).double(), squares, counts)).to(weight.dtype)


def _mean_magnitude(weight: Tensor, granularity: str) -> Tensor:
    values, counts = grouped(weight, granularity)
    return (_sum_groups(values.abs(), granularity) / counts).to(weight.dtype)


def _largest_magnitude(weight: Tensor, granularity: str) -> Tensor:
    values, _ = grouped(weight, granularity)
    low, high = torch.aminmax(values) if granularity == "tensor" else torch.aminmax(values, dim=-1)
    return torch.maximum(high, -low)


register_statistic("2std-clipped", _two_std, lambda value, bits: value.clamp(max=1.0) / max_code(bits))
register_statistic("absmean", _mean_magnitude, lambda value, bits: value, "once")
register_statistic("lsq", _mean_magnitude, lambda value, bits: 2.0 * value / math.sqrt(max_code(bits)), "once")
register_statistic(FITTED, _mean_magnitude, lambda value, bits: value, "once")
register_statistic("running-absmax", _largest_magnitude, lambda value, bits: value / max_code(bits), "running")


@torch.no_grad()
def measure_tensors(weights: Sequence[Tensor], name: str) -> Tensor:
    """`measure` of several weights of one type and device, granularity "tensor": shape (len(weights),), bit for bit.

    The numbers after the sums are worked out for all tensors at once, for the sake of small models.
    """
    if name == "2std-clipped":
        return _two_deviations([grouped(weight, "tensor")[0] for weight in weights])
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


def grouped(weight: Tensor, granularity: str) -> tuple[Tensor, Tensor | int]:
    """Values with the weights of a group on the last axis, and the number of true weights in each group.

    tensor: (rows, cols), of which all rows are one group; channel: (rows, cols); block64: (rows, blocks, 64),
    zero-padded, which no sum or maximum notices, and the numbers of shape (blocks,).
    """
    rows = weight.detach().reshape(len(weight), -1)  # (rows, cols)
    num_cols = rows.shape[1]
    if granularity != "block64":
        return rows, weight.numel() if granularity == "tensor" else num_cols
    padded = F.pad(rows, (0, -num_cols % BLOCK)).view(len(rows), -1, BLOCK)  # (rows, blocks, 64)
    starts = torch.arange(padded.shape[1], device=rows.device) * BLOCK
    return padded, (num_cols - starts).clamp(max=BLOCK).double()


def group_sums(values: Tensor, granularity: str) -> Tensor:
    """Sum over the weights of each group: float64, shape `group_shape(values.shape, granularity)`."""
    return _sum_groups(grouped(values, granularity)[0], granularity)


def _sum_groups(values: Tensor, granularity: str) -> Tensor:
    """`group_sums` of what `grouped` gave."""
    sums = values.sum(-1).double()
    return sums.sum() if granularity == "tensor" else sums
