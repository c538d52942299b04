"""ADMM on a trained float model: a few labelled batches, and low bits at the end (arXiv 2112.11438).

The equations stand in `quant/admm.py`. An outer iteration has one extra-gradient step of Theta per batch, then a
projection and a step of the multipliers. The extra-gradient step is taken as the method of that name (Korpelevich) with
two rates: with the gradient of L twice, f and lambda held,

    Theta' = Theta - eta1 dL/dTheta(Theta)           prediction
    Theta  = Theta - eta2 dL/dTheta(Theta')          from the old point, with the gradient at the predicted one

Vectors, and tensors that stay float, take the steps with the gradient of the loss alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit_k2.allocation.sensitivity import LAST_UPDATE, Progress
from lowbit_k2.core.config import Config, option
from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.losses.output import Criterion, TrainingBatch
from lowbit_k2.quant import use_precision
from lowbit_k2.quant.admm import Admm
from lowbit_k2.quant.switching import Assignment


@dataclass(frozen=True)
class AdmmStepsConfig(Config):
    """How many iterations, and how far each goes; the paper's numbers."""

    gamma: float = option(1e-3, "weight of the distance of weights from their tables", above=0)
    outer: int = option(20, "outer iterations: steps of the weights, a projection, a step of the multipliers", low=1)
    inner: int = option(20, "rounds of codes and alpha in a projection, at most", low=1, high=10000)
    eta1: float = option(0.02, "rate of the prediction in an extra-gradient step", above=0)
    eta2: float = option(0.001, "rate of the step itself", above=0)


@dataclass(frozen=True)
class OuterIteration:
    """loss: F per frame, the mean over the batches before their steps; residual: see `Admm.residual`."""

    loss: float
    residual: float


def quantize_by_admm(
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[TrainingBatch],
    assignment: Assignment,
    config: AdmmStepsConfig,
    step: Progress = lambda: None,
) -> list[OuterIteration]:
    """Bring a float model's weights to tables, in place; at the end they lie on them exactly.

    Args:
      model: trained in float, in eval mode, with quantizers made with the config of `with_fitted_steps`.
      batches: with targets.
      assignment: the precision of each tensor, as `use_precision` takes it.
      step: called behind each outer iteration.

    Raises:
      UserError: a precision that the model does not have, or numbers that are not finite on the way.
    """
    admm = Admm(model, assignment, config.gamma, config.inner)
    parameters = [p for p in model.parameters() if p.requires_grad]
    history: list[OuterIteration] = []
    for number in range(1, config.outer + 1):
        losses = [
            extra_gradient_step(parameters, _gradients_of_l(model, criterion, batch, admm), config.eta1, config.eta2)
            for batch in batches
        ]
        reached = OuterIteration(sum(losses) / len(losses), admm.iterate())
        if not (math.isfinite(reached.loss) and math.isfinite(reached.residual)):
            raise UserError(
                f"outer iteration {number} of ADMM gives a loss of {reached.loss} and a residual of "
                f"{reached.residual}: lower --eta1 and --eta2, or leave out utterances too short for their transcripts"
            )
        history.append(reached)
        step()
    model.zero_grad(set_to_none=True)
    admm.harden()
    return history


def extra_gradient_step(
    parameters: Sequence[nn.Parameter], gradients: Callable[[], float], eta1: float, eta2: float
) -> float:
    """One step, in place; see above.

    Args:
      gradients: sets `.grad` at the present values, and returns the loss there; None stands for 0.

    Returns:
      The loss before the step.
    """
    before = [p.detach().clone() for p in parameters]
    loss = gradients()
    _move(parameters, before, eta1)
    gradients()
    _move(parameters, before, eta2)
    return loss


@torch.no_grad()
def _move(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], rate: float) -> None:
    """start - rate * gradient."""
    for parameter, value in zip(parameters, start, strict=True):
        parameter.copy_(value if parameter.grad is None else value - rate * parameter.grad)


def _gradients_of_l(model: nn.Module, criterion: Criterion, batch: TrainingBatch, admm: Admm) -> Callable[[], float]:
    """What `extra_gradient_step` calls: dL/dTheta on one batch, the loss per frame."""

    def gradients() -> float:
        model.zero_grad(set_to_none=True)
        with use_precision(model, FLOAT_BITS):
            out = criterion(model, batch, LAST_UPDATE)
            loss = out.loss / out.num_frames
            loss.backward()
        admm.add_gradients()
        return loss.item()

    return gradients
