"""Weights that are shared softly among the entries of a mu-law table (General Quantizer, arXiv 2210.09188).

    z'_j  = sgn(z_j) ((1 + mu)^|z_j| - 1) / mu, rounded to a multiple of 1/128;   z: 2^bits even points in [-1, 1]
    a_ij  = softmax_j(-alpha |w_i - z'_j|)         wbar_i = sum_j a_ij z'_j
    mu    = argmin ||wbar - w||_2

wbar is a function of one number. Between two neighbouring entries the shares of all that lie on the same side stand in
the same ratio whatever w is: each side acts as one centroid, its mean, and the softmax over 2^bits becomes a sigmoid
between two,

    wbar = low_k + rise_k * sigmoid(2 alpha (w - centre_k))        z'_(k-1) < w <= z'_k

with constants that two cumulative sums give; outside of the table wbar is constant. So no matrix of weights by entries
is ever made: a weight costs a search among 2^bits numbers and one sigmoid, exactly. With alpha = None the assignment is
hard, and a weight half-way between two entries takes the smaller one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_k2.core.grids import LOW_BITS

FIRST_MU = 8.0
MUS = tuple(2.0 ** (n / 2) for n in range(-8, 21))  # 1/16 to 1024: from a nearly even table to a very uneven one
FINER = tuple(2.0 ** (n / 16) for n in range(-7, 8))  # between two of these
SNAP = 128.0
LARGEST_ALPHA = 700.0  # exp(700) is a number in float64
CHUNK = 1 << 20  # weights at a time
BINS = 4096  # of the histogram that mu is chosen on; 16 of its bins to a snap


def mu_law_table(mu: Tensor, bits: int) -> Tensor:
    """z' above: ascending, symmetric, float64.

    Args:
      mu: positive, any shape (...).
      bits: 1 to 8.
    Returns:
      (..., 2^bits); fine tables name some values twice.
    """
    assert bits in LOW_BITS, bits
    mu, size = mu.double().unsqueeze(-1), 2**bits
    z = torch.arange(1, size, 2, dtype=torch.float64, device=mu.device) / (size - 1)  # the positive half
    half = torch.expm1(z * torch.log1p(mu)) / mu
    half = (half * SNAP).round() / SNAP
    return torch.cat([-half.flip(-1), half], dim=-1) + 0.0  # no -0.0


@dataclass(frozen=True)
class Assignment:
    """The function w -> wbar of one table, or of several at once.

    Attributes:
      table: (K,), or (M, K) for M tables; ascending.
      low, rise, centre: (..., K + 1), of the pieces below, between and above the entries.
      alpha: None: hard.
    """

    table: Tensor
    low: Tensor
    rise: Tensor
    centre: Tensor
    alpha: float | None

    @classmethod
    def of(cls, table: Tensor, alpha: float | None) -> Assignment:
        """
        Args:
          table: (..., K) float64, ascending, within [-1, 1].
          alpha: positive, at most `LARGEST_ALPHA`.
        """
        assert alpha is None or 0.0 < alpha <= LARGEST_ALPHA, alpha
        middle = (table[..., 1:] + table[..., :-1]) / 2
        below, above = table, table
        if alpha is not None:
            rising, falling = (alpha * table).exp(), (-alpha * table).exp()
            left, right = rising.cumsum(-1), _backwards(falling)
            below, above = (rising * table).cumsum(-1) / left, _backwards(falling * table) / right
            heavier = (right[..., 1:] * rising[..., 1:]).log() - (left[..., :-1] * falling[..., :-1]).log()
            middle = middle - heavier / (2.0 * alpha)
        none = torch.zeros_like(table[..., :1])
        low = torch.cat([above[..., :1], below], dim=-1)
        rise = torch.cat([none, above[..., 1:] - below[..., :-1], none], dim=-1)
        return cls(table, low, rise, torch.cat([none, middle, none], dim=-1), alpha)

    def to(self, like: Tensor) -> Assignment:
        """In the type, and on the device, of some weights."""
        moved = (part.to(like) for part in (self.table, self.low, self.rise, self.centre))
        return Assignment(*moved, self.alpha)

    def values(self, x: Tensor) -> Tensor:
        """wbar of each x; x: (n,) for one table, (M, n) for M."""
        place = torch.searchsorted(self.table, x)
        inside = x - self.centre.gather(-1, place)
        share = (inside > 0).to(x) if self.alpha is None else inside.mul_(2.0 * self.alpha).sigmoid_()
        return share.mul_(self.rise.gather(-1, place)).add_(self.low.gather(-1, place))


@torch.no_grad()
def assigned(weight: Tensor, table: Tensor, alpha: float) -> Tensor:
    """wbar of a tensor of any shape, in its type; memory for `CHUNK` weights at a time besides the result."""
    function, result = Assignment.of(table.double(), alpha).to(weight), torch.empty_like(weight).reshape(-1)
    for begin in range(0, weight.numel(), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        result[chunk] = function.values(weight.reshape(-1)[chunk])
    return result.view(weight.shape)


@torch.no_grad()
def choose_mu(weight: Tensor, bits: int, alpha: float | None, now: float) -> float:
    """The mu whose table gives the least squared error, by a line search over `MUS` and then around the best.

    Of a large tensor it looks at a histogram, which hardly differs; the same on any number of threads.

    Args:
      weight: in units of the table, any shape.
      now: the mu so far, kept where no other is better.
    """
    points, counts = summary(weight)
    best = _best_mu(points, counts, bits, alpha, [now, *MUS])
    return _best_mu(points, counts, bits, alpha, [best, *(best * factor for factor in FINER)])


def _best_mu(points: Tensor, counts: Tensor, bits: int, alpha: float | None, mus: list[float]) -> float:
    tables = mu_law_table(torch.tensor(mus, dtype=torch.float64, device=points.device), bits)  # (M, K)
    values = Assignment.of(tables, alpha).values(points.expand(len(mus), -1).contiguous())  # (M, n)
    errors = (values.sub_(points).square_() * counts).sum(-1)
    return mus[int(errors.argmin())]


def summary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A few points, and how many weights each stands for, float64: the weights themselves where they are few.

    Within [-1, 1] points are the middles of narrow bins; weights beyond, for which wbar is constant, are two points,
    their means.
    """
    flat = weight.detach().reshape(-1)
    if flat.numel() <= BINS:
        return flat.double(), torch.ones_like(flat, dtype=torch.float64)
    counts = torch.zeros(BINS + 2, dtype=torch.float64, device=flat.device)
    beyond = torch.zeros(2, dtype=torch.float64, device=flat.device)
    for begin in range(0, flat.numel(), CHUNK):
        chunk = flat[begin : begin + CHUNK]
        places = (chunk * (BINS / 2)).add_(BINS / 2 + 1).floor_().clamp_(0, BINS + 1).long()
        counts += torch.bincount(places, minlength=BINS + 2)
        beyond += torch.stack([(chunk + 1.0).clamp_(max=0).double().sum(), (chunk - 1.0).clamp_(min=0).double().sum()])
    edges = torch.linspace(-1.0, 1.0, BINS + 1, dtype=torch.float64, device=flat.device)
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=flat.device) + beyond / counts[[0, -1]].clamp(min=1)
    return torch.cat([ends[:1], (edges[1:] + edges[:-1]) / 2, ends[1:]]), counts


def _backwards(x: Tensor) -> Tensor:
    """Sums of each entry and all behind it."""
    return x.flip(-1).cumsum(-1).flip(-1)
