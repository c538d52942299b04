"""AdamW with the parameter groups that quantization needs, schedules of the rate, clipping by group."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lowbit_k2.core.config import Config, option
from lowbit_k2.quant import alpha_parameters, parameter_groups
from lowbit_k2.quant.parameters import raise_to
from lowbit_k2.quant.relaxation import RELAXATIONS
from lowbit_k2.quant.switching import find_quantizers

LEARNED_SCALES = ("alphas", "tables")  # groups of what quantizers learn: their gradients are sums over tensors
# (number of the update, updates of the warm-up, share of the training done) -> rate but for its factor
SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "noam": lambda update, warm, done: min(update**-0.5, update * warm**-1.5),
    "linear": lambda update, warm, done: min(1.0, update / warm) * warm**-0.5 * (1.0 - done),
    "cosine": lambda update, warm, done: min(1.0, update / warm) * warm**-0.5 * (1.0 + math.cos(math.pi * done)) / 2.0,
}


@dataclass(frozen=True)
class OptimConfig(Config):
    """AdamW, its rate, and clipping."""

    lr_factor: float = option(1.0, "peak rate = lr_factor / sqrt(d_model * warm_step)", above=0)
    lr_schedule: str = option(
        "noam", "after warm_step: as 1 / sqrt(update), or to zero at the end of num_epochs", choices=tuple(SCHEDULES)
    )
    warm_step: int = option(500, "updates of rising rate", above=0)
    weight_decay: float = option(1e-2, "on matrices only", low=0)
    betas: tuple[float, float] = option((0.9, 0.98), flag="")
    eps: float = option(1e-9, flag="")
    clip_grad_norm: float = option(5.0, "for the weights, and separately for the alphas", above=0)
    alpha_lr_scale: float = option(
        1.0, "learning rate of the alphas over that of the weights; 0 holds them where they start", low=0
    )
    relax: str = option("none", "how weights come to their grids: at once, or slowly", choices=RELAXATIONS)
    relax_until: float = option(0.7, "share of the training after which they lie on them", above=0, high=1)
    alpha_floor: float = option(0.05, "alphas are held at or above it after every update", above=0)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW whose rate is set at each update (`set_rate`)."""
    groups = parameter_groups(model, config.weight_decay)
    for group in groups:
        group["rate_scale"] = config.alpha_lr_scale if group["name"] in LEARNED_SCALES else 1.0
        # hundreds of small tensors: their time is in the dispatch, which the multi-tensor form saves, bit for bit
        group["foreach"] = None if group["name"] == "matrices" else True
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps)


def learning_rate(config: OptimConfig, d_model: int) -> Callable[[int, float], float]:
    """Rates by the number of the update, from 1, and the share of the training that is done, 0 to 1:

    noam            lr = factor * d_model^-0.5 * min(update^-0.5, update * warm_step^-1.5)         arXiv 1706.03762
    linear, cosine  lr = factor * d_model^-0.5 * warm_step^-0.5 * min(1, update / warm_step) * fall
                    fall = 1 - done, or (1 + cos(pi * done)) / 2                                   arXiv 1608.03983
    """
    schedule = SCHEDULES[config.lr_schedule]

    def rate(update: int, done: float) -> float:
        return config.lr_factor * d_model**-0.5 * schedule(update, config.warm_step, done)

    return rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float, may_overflow: bool = False) -> dict[str, float]:
    """Clip the weights' global norm and, apart from it, the alphas' norm.

    An alpha's gradient is a sum over its whole tensor, two orders of magnitude above a weight's: in one group it
    would set the norm for all.

    Args:
      may_overflow: a gradient scaler watches over float16 gradients and skips the update where one is not finite.

    Returns:
      `grad_norm` and, where there are alphas, `grad_norm_alpha`, both before clipping.

    Raises:
      FloatingPointError: a gradient is not finite, unless it `may_overflow`.
    """
    weights = [p for g in optimizer.param_groups if g["name"] not in LEARNED_SCALES for p in g["params"]]
    alphas = [p for g in optimizer.param_groups if g["name"] in LEARNED_SCALES for p in g["params"]]
    norms = {"grad_norm": float(nn.utils.clip_grad_norm_(weights, max_norm))}
    if alphas:
        norms["grad_norm_alpha"] = float(nn.utils.clip_grad_norm_(alphas, max_norm))
    for name, norm in norms.items():
        if not may_overflow and (norm != norm or norm == float("inf")):
            raise FloatingPointError(f"{name} is {norm}")
    return norms


def rising_hardness(model: nn.Module, config: OptimConfig) -> Callable[[nn.Module, float], dict[str, float]]:
    """A hook before updates of this model: its weights come to their grids as `quant.relaxation` says.

    Returns:
      A function of the model and the share of the training that is done, whose result is `hardness`, which rises
      linearly with that share, to 1 at `relax_until`; nothing where weights are on their grids from the first update.
    """
    quantizers = find_quantizers(model) if config.relax != "none" else []

    def hook(model: nn.Module, done: float) -> dict[str, float]:
        hardness = min(1.0, done / config.relax_until)
        for quantizer in quantizers:
            quantizer.relaxation, quantizer.hardness = config.relax, hardness
        return {"hardness": hardness} if quantizers else {}

    return hook


def dropout_schedule(model: nn.Module) -> Callable[[nn.Module, float], dict[str, float]]:
    """A hook before updates that sets the dropout of a TDNN-F: 0 for a fifth of the training, rising to its largest
    rate at the middle, and falling to 0 at the end (Kaldi's `0,0@0.20,0.5@0.50,0`); nothing for other models.
    """
    encoder = getattr(model, "encoder", None)
    largest = encoder.config.dropout if hasattr(encoder, "dropped") else 0.0

    def hook(model: nn.Module, done: float) -> dict[str, float]:
        if not largest:
            return {}
        model.encoder.dropped = largest * max(0.0, min((done - 0.2) / 0.3, (1.0 - done) / 0.5))
        return {"dropout": model.encoder.dropped}

    return hook


def floor_of_alphas(model: nn.Module, floor: float) -> Callable[[nn.Module, int], dict[str, float]]:
    """A hook behind updates of this model that raises alphas below `floor`; see `lowbit_k2.quant.clamp_alphas` for why.

    Returns:
      A function whose result is `alphas_held`, how many were raised; nothing for a model without alphas.
    """

    alphas = alpha_parameters(model)

    def hook(model: nn.Module, update: int) -> dict[str, float]:
        return {"alphas_held": float(raise_to(alphas, floor))} if alphas else {}

    return hook
