"""What an optimizer must know of a quantized model: which parameters take no weight decay, and alphas above zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lowbit_k2.quant.config import low_bits
from lowbit_k2.quant.inputs import elastic_inputs
from lowbit_k2.quant.linear import LinearQuantizer
from lowbit_k2.quant.switching import find_quantizers


def alpha_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All alphas: for a parameter group without weight decay and with its own clipping."""
    linear = [quantizer for quantizer in find_quantizers(model) if isinstance(quantizer, LinearQuantizer)]
    return [alpha for holder in (*linear, *elastic_inputs(model)) for alpha in holder.alphas.values()]


def quantizer_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All that quantizers learn, alphas, thresholds, gains and tables: it wants no weight decay."""
    of_weights = [p for q in find_quantizers(model) for bits in low_bits(q.bits) for p in q.learned(bits)]
    return of_weights + [p for grid in elastic_inputs(model) for p in grid.parameters()]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups for an optimizer: matrices (decayed), norms and biases (not), alphas (not; clipped on their own), and
    what other quantizers learn (not); those without parameters left out.

    Decay would pull an alpha to zero, which is no prior that anybody holds.
    """
    alphas = alpha_parameters(model)
    known = {id(p) for p in alphas}
    tables = [p for p in quantizer_parameters(model) if id(p) not in known]
    known |= {id(p) for p in tables}
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in known]
    matrices = [p for name, p in rest if p.dim() > 1 and "bias" not in name]  # pos_bias_u is a bias of two dimensions
    vectors = [p for name, p in rest if p.dim() <= 1 or "bias" in name]
    groups = [
        {"name": "matrices", "params": matrices, "weight_decay": weight_decay},
        {"name": "vectors", "params": vectors, "weight_decay": 0.0},
        {"name": "alphas", "params": alphas, "weight_decay": 0.0},
        {"name": "tables", "params": tables, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def clamp_alphas(model: nn.Module, floor: float = 0.05) -> int:
    """Raise alphas that an update took below `floor`, and return how many; call it after every update.

    An alpha at zero switches its tensor off, and a negative one turns every code round while the straight-through
    gradients stay: neither comes back by itself. It happens early in training, when alphas fall from 1 to about 0.4
    (the L2-optimal step of a Gaussian tensor) with momentum.
    """
    return raise_to(alpha_parameters(model), floor)


@torch.no_grad()
def raise_to(alphas: Sequence[nn.Parameter], floor: float) -> int:
    """`clamp_alphas` of a model's `alpha_parameters`, for a loop that has looked them up before."""
    if not alphas:
        return 0
    raised = int((torch.stack(alphas) < floor).sum())  # one synchronisation with a GPU
    if raised:
        for alpha in alphas:
            alpha.clamp_(min=floor)
    return raised
