"""Numbers to log while training: how alphas stand and how the codes move."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowbit_k2.quant.config import low_bits
from lowbit_k2.quant.linear import LinearQuantizer
from lowbit_k2.quant.quantizer import WeightQuantizer
from lowbit_k2.quant.switching import latent_weights


@torch.no_grad()
def quant_statistics(model: nn.Module) -> dict[str, float]:
    """Per precision that the model holds, whatever is active:

    alpha_min_Nbit, alpha_max_Nbit   over tensors; an alpha <= 0 makes a model that export refuses
    zero_share_Nbit                  share of weights whose code is 0 (always 0 at 1 bit); of tables nothing is said
    flip_rate_Nbit                   share of weights whose code changed since the last call (absent in the first)

    Costs one quantization of every tensor and precision, and keeps a byte per weight and precision: call it at
    logging intervals.
    """
    alphas: dict[int, list[float]] = {}
    counts: dict[int, _Counts] = {}
    for quantizer, latent in latent_weights(model).items():
        for bits in low_bits(quantizer.bits):
            if isinstance(quantizer, LinearQuantizer):
                alphas.setdefault(bits, []).append(quantizer.alphas[str(bits)].item())
            codes = quantizer.codes(latent.detach(), bits)
            previous = _exchange_codes(quantizer, bits, codes)
            counts.setdefault(bits, _Counts()).add(codes, previous, quantizer.zero_code)
    statistics = {}
    for bits in sorted(counts):
        if bits in alphas:
            statistics[f"alpha_min_{bits}bit"] = min(alphas[bits])
            statistics[f"alpha_max_{bits}bit"] = max(alphas[bits])
        statistics |= counts[bits].shares(f"{bits}bit")
    return statistics


class _Counts:
    """Running totals of one precision."""

    def __init__(self) -> None:
        self.weights = self.zeros = self.compared = self.flipped = 0

    def add(self, codes: Tensor, previous: Tensor | None, zero_code: int | None) -> None:
        if zero_code is not None:
            self.weights += codes.numel()
            self.zeros += int((codes == zero_code).sum())
        if previous is not None:
            self.compared += codes.numel()
            self.flipped += int((codes != previous).sum())

    def shares(self, label: str) -> dict[str, float]:
        shares = {}
        if self.weights:
            shares[f"zero_share_{label}"] = self.zeros / self.weights
        if self.compared:
            shares[f"flip_rate_{label}"] = self.flipped / self.compared
        return shares


def _exchange_codes(quantizer: WeightQuantizer, bits: int, codes: Tensor) -> Tensor | None:
    """Remember `codes` until the next call; return what was remembered."""
    previous = quantizer.previous_codes.get(bits)
    quantizer.previous_codes[bits] = codes
    return None if previous is None else previous.to(codes.device)
