"""Logits of candidates, trained by the Gumbel-softmax (arXiv 1611.01144) with all weights held (arXiv 2206.11643).

    lambda = softmax((log gamma + G) / T),   G = -log(-log U),  U uniform in (0, 1)
    L = L_task + eta * sum_{l,i} lambda_i^l C_i^l              L_task per output frame, C in millions (search/costs.py)

T falls by the same factor at every update. The logits log gamma (L, K) are a parameter of the model, so that
checkpoints, ranks and resumed runs treat them like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lowbit_k2.losses.output import Criterion, PassOutput, TrainingBatch
from lowbit_k2.models.masking import MaskedBatchNorm
from lowbit_k2.quant import generator_seed
from lowbit_k2.quant.switching import find_quantizers
from lowbit_k2.search.config import SearchConfig
from lowbit_k2.search.costs import CostTable
from lowbit_k2.search.supernet import Supernet

LOGITS = "architecture_logits"  # name of the parameter


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent draws of the standard Gumbel distribution, float32, on the CPU."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
    return -(-uniform.log()).log().float()


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """lambda (L, K), each row adding up to 1: near one-hot at low temperatures, near uniform at high ones."""
    return ((logits + noise) / temperature).softmax(dim=-1)


class Annealed(Protocol):
    """Settings with two temperatures."""

    start_temperature: float
    final_temperature: float


def temperature_at(config: Annealed, done: float) -> float:
    """T at a share `done` of the training, 0 to 1: start (final / start)^done."""
    return config.start_temperature * (config.final_temperature / config.start_temperature) ** done


def hold_weights(model: nn.Module) -> None:
    """No gradient reaches the model, and no running statistic moves, those of quantizers included.

    BatchNorms go on by the batch: their running statistics are of all sampled architectures together and fit none.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, MaskedBatchNorm):
            module.momentum = 0.0
    for quantizer in find_quantizers(model):
        quantizer.frozen = True


def add_logits(model: nn.Module, supernet: Supernet) -> nn.Parameter:
    """log gamma (L, K), all candidates alike at first, as a parameter of the model."""
    space = supernet.space
    logits = nn.Parameter(supernet.leading.new_zeros(space.num_layers, len(space.candidates)))
    model.register_parameter(LOGITS, logits)
    return logits


class GumbelCriterion:
    """A criterion whose passes are those of a random mixture, with the cost of that mixture added to the loss."""

    def __init__(
        self,
        criterion: Criterion,
        supernet: Supernet,
        logits: Tensor,
        costs: CostTable,
        config: SearchConfig,
        seed: int,
        updates_before: int = 0,
    ) -> None:
        """
        Args:
          updates_before: of the weights: warm-ups of the task's loss are over.
          seed: of the noise, which all ranks and all batches of an update have alike.
        """
        self.criterion, self.supernet, self.logits = criterion, supernet, logits
        self.costs, self.config, self.seed, self.updates_before = costs, config, seed, updates_before
        self.temperature = config.start_temperature

    def draw(self, update: int) -> Tensor:
        """lambda (L, K) of an update."""
        generator = torch.Generator().manual_seed(generator_seed("gumbel", self.seed, update))
        noise = gumbel_noise(tuple(self.logits.shape), generator).to(self.logits)
        return gumbel_softmax(self.logits, noise, self.temperature)

    def __call__(self, model: nn.Module, batch: TrainingBatch, update: int, shared: Any = None) -> PassOutput:
        """See `lowbit_k2.losses.output.Criterion`; `parts` have the task's loss and the penalty."""
        weights = self.draw(update)
        self.supernet.mix(weights)
        out = self.criterion(model, batch, self.updates_before + update, shared)
        penalty = self.config.eta * self.costs.expected(weights) * out.num_frames  # summed over frames, as the loss is
        parts = {**out.parts, "task": out.loss.detach(), "penalty": penalty.detach()}
        return replace(out, loss=out.loss + penalty, parts=parts)

    def anneal(self) -> Callable[[nn.Module, float], dict[str, float]]:
        """A hook before updates that sets the temperature, and tells of the logits.

        Returns:
          A function whose result is `temperature`, `cost`, expected of the whole model in millions, and `entropy` of a
          layer's probabilities, the mean in nats.
        """

        def hook(model: nn.Module, done: float) -> dict[str, float]:
            self.temperature = temperature_at(self.config, done)
            probabilities = self.logits.detach().softmax(dim=-1)
            cost = self.costs.fixed / self.costs.unit + float(self.costs.expected(probabilities))
            entropy = float(torch.special.entr(probabilities).sum(dim=-1).mean())
            return {"temperature": self.temperature, "cost": cost, "entropy": entropy}

        return hook
