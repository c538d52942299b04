"""Precisions that are learned: a supernet of the float model quantized at each precision, and logits of these alone.

    W_g = sum_b lambda_gb Q_b(W_g),   lambda_g = softmax((log gamma_g + G_g) / T)                    arXiv 2206.11643
    L = L_task + beta * (mean bits of a weight)                                                      per output frame

All weights are held. What comes out is -log of the probabilities, which adds up over tensors as the other measures do:
the choice under a budget is then the likeliest one that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit_k2.allocation.sensitivity import LAST_UPDATE, Progress, read_weight
from lowbit_k2.core.config import Config, option
from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.losses.output import Criterion, PassOutput, TrainingBatch
from lowbit_k2.quant.switching import quantizer_owners, use_precision
from lowbit_k2.search.gumbel import gumbel_noise, gumbel_softmax, temperature_at

try:
    from torch.func import functional_call
except ImportError:  # before torch 2.0
    from torch.nn.utils.stateless import functional_call


@dataclass(frozen=True)
class LearnedConfig(Config):
    """How the logits are trained."""

    updates: int = option(200, "updates of the logits, each on one mini-batch", flag="nas-updates", low=1)
    rate: float = option(0.05, "Adam's rate for the logits", flag="nas-rate", above=0, high=10)
    beta: float = option(0.0, "price of a bit, in nats per output frame", flag="nas-beta", low=0)
    start_temperature: float = option(1.0, flag="", low=0.001, high=100)
    final_temperature: float = option(0.03, flag="", low=0.001, high=100)


def learned_preference(
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[TrainingBatch],
    members: Mapping[str, Sequence[str]],
    bits: Sequence[int],
    config: LearnedConfig,
    seed: int = 0,
    step: Progress = lambda: None,
) -> dict[str, dict[int, float]]:
    """`nas`: -log of the probability of each precision, by group; the model in eval mode."""
    mixture = Mixture(model, criterion, members, bits)
    logits = nn.Parameter(torch.zeros(len(members), len(bits)))
    optimizer = torch.optim.Adam([logits], lr=config.rate)
    generator = torch.Generator().manual_seed(seed)
    for update in range(config.updates):
        temperature = temperature_at(config, update / config.updates)
        weights = gumbel_softmax(logits, gumbel_noise(tuple(logits.shape), generator), temperature)
        out = mixture.mixed(weights, batches[update % len(batches)])
        loss = out.loss / out.num_frames + config.beta * mixture.average_bits(weights)
        (logits.grad,) = torch.autograd.grad(loss, logits)
        optimizer.step()
        step()
    surprise = -logits.detach().double().log_softmax(dim=1)
    return {group: dict(zip(bits, row.tolist(), strict=True)) for group, row in zip(members, surprise, strict=True)}


class Mixture(nn.Module):
    """The model with each weight the mean of what it is at each precision."""

    def __init__(
        self, model: nn.Module, criterion: Criterion, members: Mapping[str, Sequence[str]], bits: Sequence[int]
    ) -> None:
        super().__init__()
        self.model, self.criterion, self.bits = model, criterion, bits
        groups = {name: number for number, own in enumerate(members.values()) for name in own}
        self.group_of = {q.name: groups[q.name] for q in quantizer_owners(model) if q.name in groups}
        found: dict[str, list[Tensor]] = {name: [] for name in self.group_of}
        for b in bits:
            with torch.no_grad(), use_precision(model, dict.fromkeys(self.group_of, b)):
                for name, own in found.items():
                    own.append(read_weight(model, name).clone())
        self.prototypes = {name: torch.stack(own) for name, own in found.items()}  # (bits, ...)
        sizes = torch.zeros(len(members))
        for name, number in self.group_of.items():
            sizes[number] += self.prototypes[name][0].numel()
        self.shares = sizes / sizes.sum()  # (groups,)

    def average_bits(self, weights: Tensor) -> Tensor:
        """Bits of a weight, the mean over all of the groups; weights (groups, bits)."""
        return self.shares @ (weights @ torch.tensor(self.bits, dtype=weights.dtype))

    def mixed(self, weights: Tensor, batch: TrainingBatch) -> PassOutput:
        """A pass with `weights` lambda (groups, bits), whose gradient leads back to them."""
        in_use = {}
        for name, number in self.group_of.items():
            module, _, attribute = name.rpartition(".")
            key = ".".join(filter(None, ["model", module, "parametrizations", attribute, "original"]))
            in_use[key] = torch.einsum("b,b...->...", weights[number], self.prototypes[name])
        with use_precision(self.model, FLOAT_BITS):  # whatever stands in the latents' place is used as it is
            return functional_call(self, in_use, (batch,))

    def forward(self, batch: TrainingBatch) -> PassOutput:
        return self.criterion(self.model, batch, LAST_UPDATE)
