"""ADMM: weights that training draws to tables, instead of weights that are sent through them (arXiv 2112.11438).

    L = F(Theta) + gamma / 2 ||Theta - f(Theta) + lambda||^2 - gamma / 2 ||lambda||^2

F is the loss of the float weights Theta, f(Theta) their targets on the tables alpha * codes, one alpha per group, and
lambda the multipliers, one per weight, 0 at first. In turn

    Theta     some steps down the gradient of L, f and lambda held:  dF/dTheta + gamma (Theta - f(Theta) + lambda)
    f(Theta)  alpha * V, from some rounds of  V = nearest codes of (Theta + lambda) / alpha,
              alpha = (Theta + lambda)'V / V'V                       (`least_squares.nearest_steps`)
    lambda    lambda + Theta - f(Theta)

`Admm` holds the state and does all but the steps of Theta, which are the business of a training loop
(`train/admm.py`) or of a few batches (`allocation/admm.py`).

What a model computes at a low precision meanwhile is its weights on the tables nearest to them, lambda left out: where
Theta has come to its targets that is f(Theta), and where it has not, multipliers that have grown would add an error.
`harden` makes these the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lowbit_k2.core.grids import LOW_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.quant.config import QuantConfig, low_bits
from lowbit_k2.quant.least_squares import nearest_steps
from lowbit_k2.quant.linear import LinearQuantizer
from lowbit_k2.quant.projection import expand_steps, project
from lowbit_k2.quant.scales import FITTED
from lowbit_k2.quant.switching import Assignment, latent_weights, use_precision

STATE = ("target", "multiplier", "step")  # of each tensor, what a run that goes on needs


def with_fitted_steps(config: QuantConfig) -> QuantConfig:
    """The config with steps that can be set, as `Admm` needs them, started at the least squared error."""
    schemes = {
        role: replace(scheme, scale=FITTED) if low_bits(scheme.bits) else scheme
        for role, scheme in config.schemes.items()
    }
    return replace(config, schemes=schemes, alpha_init="l2")


@dataclass
class SplitWeight:
    """A weight tensor and its target.

    Attributes:
      bits: of its table.
      weight: Theta, the latent weight.
      target: f(Theta), shape of `weight`.
      multiplier: lambda, shape of `weight`.
      step: alpha of the target, shape `group_shape(weight.shape, granularity)`.
    """

    quantizer: LinearQuantizer
    bits: int
    weight: nn.Parameter
    target: Tensor
    multiplier: Tensor
    step: Tensor

    @classmethod
    def of(cls, quantizer: LinearQuantizer, weight: nn.Parameter, bits: int) -> SplitWeight:
        """Multipliers of 0, and the step that the quantizer has."""
        if not isinstance(quantizer, LinearQuantizer):
            raise UserError(f"{quantizer.name}: ADMM needs an even grid: give its role quantizer 'linear'")
        zeros = torch.zeros_like(weight.detach())
        return cls(quantizer, bits, weight, zeros, zeros.clone(), quantizer.step(weight, bits))

    def nearest(self, weight: Tensor, step: Tensor, rounds: int) -> Tensor:
        """Steps that fit `weight` better than `step`."""
        return nearest_steps(weight, step, self.bits, self.quantizer.scheme.granularity, rounds)

    def project(self, rounds: int) -> None:
        """f(Theta) from Theta + lambda."""
        moved = self.weight.detach() + self.multiplier
        self.step = self.nearest(moved, self.step, rounds)
        step = expand_steps(self.step, moved.shape, self.quantizer.scheme.granularity)
        self.target = project(moved, step, self.bits).mul_(step)

    def publish(self, rounds: int) -> None:
        """Give the quantizer the table that is nearest to the weights themselves."""
        weight, quantizer = self.weight.detach(), self.quantizer
        quantizer.set_steps(self.bits, self.nearest(weight, quantizer.step(weight, self.bits), rounds))

    def harden(self) -> None:
        """The weights become what the quantizer makes of them, whose own codes they then have, bit for bit."""
        self.weight.copy_(self.quantizer.quantize(self.weight.detach(), self.bits))


class Admm:
    """Targets and multipliers of all tensors of a model that have 1 to 8 bits under an allocation; see above.

    Frozen tensors are left out: they cannot come to a table.
    """

    def __init__(self, model: nn.Module, assignment: Assignment, gamma: float, rounds: int) -> None:
        """
        Args:
          model: with quantizers, made with the config of `with_fitted_steps`.
          assignment: the precision of each tensor, as `use_precision` takes it.
          gamma: weight of the distance, positive.
          rounds: of alpha and codes in a projection, at most.

        Raises:
          UserError: a precision that the model does not have, a tensor whose steps cannot be set, or none at all.
        """
        assert gamma > 0.0 and rounds > 0, (gamma, rounds)
        self.gamma, self.rounds = gamma, rounds
        with use_precision(model, assignment):
            chosen = [
                (quantizer, weight, quantizer.active_bits)
                for quantizer, weight in latent_weights(model).items()
                if quantizer.active_bits in LOW_BITS and not quantizer.frozen
            ]
        if not chosen:
            raise UserError("ADMM finds no tensor with 1 to 8 bits: choose another precision or quantization")
        self.tensors = [SplitWeight.of(*each) for each in chosen]
        self.project()

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add gamma (Theta - f(Theta) + lambda) to the gradients of the weights."""
        for tensor in self.tensors:
            pull = (tensor.weight - tensor.target).add_(tensor.multiplier).mul_(self.gamma)
            tensor.weight.grad = pull if tensor.weight.grad is None else tensor.weight.grad.add_(pull)

    @torch.no_grad()
    def project(self) -> None:
        """f(Theta) anew; the quantizers get the tables nearest to Theta."""
        for tensor in self.tensors:
            tensor.project(self.rounds)
            tensor.publish(self.rounds)

    @torch.no_grad()
    def iterate(self) -> float:
        """What follows the steps of Theta in an outer iteration; returns `residual`."""
        self.project()
        for tensor in self.tensors:
            tensor.multiplier += tensor.weight.detach() - tensor.target
        return self.residual()

    @torch.no_grad()
    def residual(self) -> float:
        """||Theta - f(Theta)|| / ||Theta||, over all tensors together: 0 for weights that lie on their tables."""
        apart = torch.stack([(t.weight - t.target).double().square().sum() for t in self.tensors]).sum()
        whole = torch.stack([t.weight.detach().double().square().sum() for t in self.tensors]).sum()
        return float((apart / whole.clamp(min=1e-300)).sqrt())

    @torch.no_grad()
    def harden(self) -> None:
        """Put the weights on the tables that are nearest to them."""
        for tensor in self.tensors:
            tensor.publish(self.rounds)
            tensor.harden()

    @property
    def state(self) -> dict[str, Tensor]:
        """Targets, multipliers and steps, by the names of the weights."""
        return {f"{t.quantizer.name}.{what}": getattr(t, what) for t in self.tensors for what in STATE}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], source: str | Path) -> None:
        """Take back `state`; `source` is named in errors.

        Raises:
          UserError: it is that of other tensors.
        """
        own = self.state
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in state.items()}:
            raise UserError(f"{source} holds multipliers of other tensors, or none: go on with the flags of its run")
        for name, tensor in own.items():
            tensor.copy_(state[name])
