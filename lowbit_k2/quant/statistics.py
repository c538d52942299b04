"""Numbers to log while training: how alphas stand and how the codes move."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowbit_k2.quant.quantizer import WeightQuantizer
from lowbit_k2.quant.switching import find_quantizers, latent_weights


def alpha_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All alphas: for a parameter group without weight decay and with its own clipping."""
    return [alpha for quantizer in find_quantizers(model) for alpha in quantizer.alphas.values()]


@torch.no_grad()
def quant_statistics(model: nn.Module) -> dict[str, float]:
    """Per precision that the model holds, whatever is active:

    alpha_min_Nbit, alpha_max_Nbit   over tensors; an alpha <= 0 makes a model that export refuses
    zero_share_Nbit                  share of weights whose code is 0 (always 0 at 1 bit)
    flip_rate_Nbit                   share of weights whose code changed since the last call (absent in the first)

    Costs one quantization of every tensor and precision, and keeps a byte per weight and precision: call it at
    logging intervals.
    """
    alphas: dict[int, list[float]] = {}
    counts: dict[int, _Counts] = {}
    for quantizer, latent in latent_weights(model).items():
        for key, alpha in quantizer.alphas.items():
            bits = int(key)
            alphas.setdefault(bits, []).append(alpha.item())
            codes = quantizer.codes(latent.detach(), bits)
            counts.setdefault(bits, _Counts()).add(codes, _exchange_codes(quantizer, bits, codes))
    statistics = {}
    for bits in sorted(alphas):
        statistics[f"alpha_min_{bits}bit"] = min(alphas[bits])
        statistics[f"alpha_max_{bits}bit"] = max(alphas[bits])
        statistics |= counts[bits].shares(f"{bits}bit")
    return statistics


class _Counts:
    """Running totals of one precision."""

    def __init__(self) -> None:
        self.weights = self.zeros = self.compared = self.flipped = 0

    def add(self, codes: Tensor, previous: Tensor | None) -> None:
        self.weights += codes.numel()
        self.zeros += codes.numel() - int(codes.count_nonzero())
        if previous is not None:
            self.compared += codes.numel()
            self.flipped += int((codes != previous).sum())

    def shares(self, label: str) -> dict[str, float]:
        shares = {f"zero_share_{label}": self.zeros / self.weights}
        if self.compared:
            shares[f"flip_rate_{label}"] = self.flipped / self.compared
        return shares


def _exchange_codes(quantizer: WeightQuantizer, bits: int, codes: Tensor) -> Tensor | None:
    """Remember `codes` until the next call; return what was remembered."""
    previous = quantizer.previous_codes.get(bits)
    quantizer.previous_codes[bits] = codes
    return None if previous is None else previous.to(codes.device)
