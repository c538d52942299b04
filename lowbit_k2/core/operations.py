"""What a HuBERT costs by the accounting of arXiv 2301.00652: operations of each kind, an estimated run time, storage.

    QuantOPs    of a product of b1 by b2 bits: b1 b2; of an addition: max(b1, b2)
    FLOPs       a multiplication and an addition of floats: 2
    run time    (FLOPs + QuantOPs 28.55 / 1898.44) / 110.79, in units of 10^9; that paper's fp16 model is 1
    storage     float parameters 16 bits, quantized ones as many as they have

No torch: counts follow from the settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowbit_k2.core.grids import HALF_BITS
from lowbit_k2.core.hubert import HubertConfig

QUANT_TO_FLOAT = 28.55 / 1898.44  # GFLOPs that take the time of one Gbit of QuantOPs
PAPER_GFLOPS = 110.79  # of its fp16 model
LINEARS = ("query", "key", "value", "out", "w1", "w2")  # of each layer of the Transformer
SCHEMES = ("bit-l", "bit-la", "sqwq")
SQWQ_INPUT_BITS = 8


def quant_ops(macs: float, bits1: int, bits2: int) -> float:
    """QuantOPs of `macs` products that are added up."""
    return macs * (bits1 * bits2 + max(bits1, bits2))


def estimated_runtime(gflops: float, quant_gops: float, reference: float = PAPER_GFLOPS) -> float:
    """Run time in units of a model that takes `reference` GFLOPs, all of them in floats."""
    return (gflops + quant_gops * QUANT_TO_FLOAT) / reference


@dataclass(frozen=True)
class Operations:
    """Multiplications, each with its addition, of one utterance; norms and activation functions are left out.

    front: extractor, projection, positional convolution.
    linears: matrices of the Transformer.
    products: both products of attention.
    """

    front: int
    linears: int
    products: int

    @classmethod
    def of(cls, config: HubertConfig, num_samples: int) -> Operations:
        """Of `num_samples` samples of audio."""
        front, before = 0, 1
        of_convs = zip(config.layer_conv_dims, config.conv_kernels, config.conv_lens(num_samples), strict=True)
        for dim, kernel, frames in of_convs:
            front += frames * dim * before * kernel
            before = dim
        t, d = config.output_lens(num_samples), config.d_model
        positions = t + 1 - config.positions_kernel % 2  # an even kernel makes one frame that is cut off
        front += t * before * d + positions * d * (d // config.positions_groups) * config.positions_kernel
        linears = config.num_layers * t * d * (4 * d + 2 * config.ffn_dim)
        return cls(front, linears, config.num_layers * 2 * t * t * d)

    @property
    def all(self) -> int:
        return self.front + self.linears + self.products

    def counted(self, scheme: str, bits: int) -> tuple[float, float]:
        """(GFLOPs, QuantOPs in Gbit) at `bits`, 16 for the float model; scheme: one of SCHEMES."""
        if bits == HALF_BITS:
            return 2 * self.all / 1e9, 0.0
        assert scheme in SCHEMES, scheme
        quantized = quant_ops(self.linears, bits, SQWQ_INPUT_BITS if scheme == "sqwq" else bits)
        floats = self.front
        if scheme == "bit-la":
            quantized += quant_ops(self.products, bits, bits)
        else:
            floats += self.products
        return 2 * floats / 1e9, quantized / 1e9

    def runtime(self, scheme: str, bits: int) -> float:
        """Estimated run time in units of this very model in fp16."""
        return estimated_runtime(*self.counted(scheme, bits), reference=2 * self.all / 1e9)


def stored_bits(config: HubertConfig, scheme: str, bits: int) -> dict[str, int]:
    """Bits of storage by tensor, and of what the scheme adds, as the paper counts; `bits` 16 is the float model."""
    found: dict[str, int] = {}
    for name, shape in config.shapes():
        part = name.split(".")[-2]
        if bits == HALF_BITS or part not in LINEARS or len(shape) < 2:
            found[name] = HALF_BITS * math.prod(shape)
            continue
        found[name] = bits * math.prod(shape)
        # a gain per row; or step and threshold of the weight and of what goes in
        found[f"{name}: scales"] = HALF_BITS * (shape[0] if scheme == "sqwq" else 4)
    if scheme == "bit-la" and bits != HALF_BITS:
        for i in range(config.num_layers):
            found[f"encoder.layers.{i}.attention: scales of products"] = HALF_BITS * 2 * 4
    return found
