"""Where alpha starts: the multiple of s whose grid is nearest to the weights.

    alpha* = argmin_alpha ||W - alpha s Proj(W / (alpha s))||^2

With the codes c fixed, alpha = sum(s c w) / sum(s^2 c^2). At 1 bit c = sign(w), which is the answer (XNOR-Net, arXiv
1603.05279, for one s); at 2 bits the codes other than 0 are those of the largest |w| / s, so that the best of all
prefixes is the answer. Finer grids go on from the best of some clipping ranges, codes and alpha in turn, which never
makes the error larger. `nearest_steps` does the last alone, from steps that are there already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_k2.core.grids import max_code
from lowbit_k2.quant.projection import expand_steps, project
from lowbit_k2.quant.scales import SMALLEST_SCALE, group_sums

ALPHA_INITS = ("l2", "one")
MAX_SAMPLES = 1 << 16  # of a larger tensor, evenly spaced weights; all of them at 1 bit
RANGES, NARROWER = 60, 0.95  # clipping ranges that are tried, from the largest weight down, and their ratio
FINE = 21  # more of them around the best one
MAX_ROUNDS = 100


@torch.no_grad()
def nearest_alpha(weight: Tensor, scale: Tensor, bits: int, granularity: str) -> Tensor:
    """The alpha above, shape (), type of `weight`; 1 for weights that are all zero.

    Args:
      weight: any shape.
      scale: s, shape `group_shape(weight.shape, granularity)`, positive.
      bits: 1 to 8.
    """
    one = torch.ones((), dtype=weight.dtype, device=weight.device)
    if weight.is_meta:  # only shapes are wanted
        return one
    stride = 1 if bits == 1 else -(-weight.numel() // MAX_SAMPLES)
    s = expand_steps(scale, weight.shape, granularity).expand(weight.shape).reshape(-1)[::stride].double()
    w = weight.detach().reshape(-1)[::stride].double()
    ratio = w.abs() / s
    if not float(ratio.max()) > 0.0:
        return one
    if bits == 1:
        alpha = (s * w.abs()).sum() / s.square().sum()
    elif max_code(bits) == 1:
        order = ratio.argsort(descending=True)
        s, w = s[order], w.abs()[order]
        products, squares = (s * w).cumsum(0), s.square().cumsum(0)
        best = (products.square() / squares).argmax()
        alpha = products[best] / squares[best]
    else:
        powers = torch.arange(RANGES, dtype=w.dtype, device=w.device)
        coarse = _best(w, s, ratio.max() / max_code(bits) * NARROWER**powers, bits)
        fine = torch.linspace(NARROWER, 2.0 - NARROWER, FINE, dtype=w.dtype, device=w.device)
        alpha = _alternate(w, s, _best(w, s, coarse * fine, bits), bits)
    return alpha.to(weight.dtype)


@torch.no_grad()
def nearest_steps(weight: Tensor, step: Tensor, bits: int, granularity: str, rounds: int = MAX_ROUNDS) -> Tensor:
    """Steps with a smaller error, from those that are there: up to `rounds` times, in each group alone,

        V = Proj(w / step),    step = w'V / V'V

    Args:
      weight: any shape.
      step: where to begin, shape `group_shape(weight.shape, granularity)`, positive.
    Returns:
      shape of `step`, type of `weight`, positive.
    """
    one = torch.ones((), dtype=torch.float64, device=weight.device)
    found = _alternate(weight.detach().double(), one, step.double(), bits, granularity, rounds)
    return found.to(weight.dtype).clamp(min=SMALLEST_SCALE)


def _best(w: Tensor, s: Tensor, alphas: Tensor, bits: int) -> Tensor:
    """The alpha with the least squared error."""
    errors = [(project(w, alpha * s, bits) * alpha * s - w).square().sum() for alpha in alphas]
    return alphas[torch.stack(errors).argmin()]


def _alternate(
    w: Tensor, s: Tensor, alpha: Tensor, bits: int, granularity: str = "tensor", rounds: int = MAX_ROUNDS
) -> Tensor:
    """Codes and alpha in turn, one alpha per group; a group whose codes are all 0 keeps its own."""
    for _ in range(rounds):
        reached = s * project(w, expand_steps(alpha, w.shape, granularity) * s, bits)
        products, squares = group_sums(reached * w, granularity), group_sums(reached.square(), granularity)
        new = torch.where(products > 0.0, products / squares, alpha)
        if torch.isclose(new, alpha, rtol=1e-7, atol=0.0).all():
            break
        alpha = new
    return alpha
