#!/usr/bin/env python3
"""How small do the models of arXiv 2505.21245 get? Packed files by allocation, on disk, every byte once.

    python benchmarks/sizes.py
    python benchmarks/sizes.py --models swbd

The models are built as that paper and ESPnet's recipe describe them, an attention decoder beside the CTC head included,
and not trained: these are sizes only, and say nothing of what an allocation costs in words. The paper reports 16.2x for
the first and 16.6x for the second.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import torch
from torch import nn

from lowbit_k2.core.encoders import ConformerConfig
from lowbit_k2.errors import run_main
from lowbit_k2.export import save_packed
from lowbit_k2.models.conformer import ConformerEncoder
from lowbit_k2.packed import SizeTable, read_packed, size_table
from lowbit_k2.progress import progress_bar
from lowbit_k2.quant import Allocation, QuantConfig, quantize_model, use_precision
from lowbit_k2.recipe.flags import make_parser
from lowbit_k2.tables import markdown_table

DECODER_LAYERS, BITS = 6, (8, 4, 2, 1)
MODELS = {  # width, heads, features, tokens
    "swbd": ("Switchboard, 44.6 M", (256, 4, 83, 2000)),
    "librispeech": ("LibriSpeech, 116 M", (512, 8, 80, 5000)),
}
LINEARS = {"encoder.layers.*.ff?.*": 1, "encoder.layers.*.attention.*": 1}
ALLOCATIONS = (
    Allocation(LINEARS | {"": 8}, "encoder's linears 1 bit, all else 8"),
    Allocation(LINEARS | {"": 4}, "encoder's linears 1 bit, all else 4"),
    Allocation(LINEARS | {"": 4, "decoder.layers": 2}, "and the decoder's layers 2 bits"),
    Allocation(LINEARS | {"": 4, "decoder.layers": 1}, "and the decoder's layers 1 bit"),
    Allocation(
        LINEARS | {"": 4, "decoder.layers": 1, "encoder.layers.*.conv.*": 1}, "and the convolution modules 1 bit"
    ),
    Allocation.uniform(2, "every matrix 2 bits"),
    Allocation.uniform(1, "every matrix 1 bit"),
)
ENCODINGS = {
    "binary": "1 bit",
    "ternary": "2 bits",
    "int4": "4 bits",
    "int8": "8 bits",
    "float16": "16 bits",
    "float32": "32 bits",
}


class Hybrid(nn.Module):
    """A Conformer of twelve layers, a CTC head, and a Transformer decoder of six."""

    def __init__(self, width: int, heads: int, features: int, tokens: int) -> None:
        super().__init__()
        sizes = {"num_features": features, "d_model": width, "num_heads": heads, "ffn_dim": (2048,)}
        self.encoder = ConformerEncoder(ConformerConfig.preset("paper", subsampling_channels=width, **sizes))
        self.ctc_head = nn.Linear(width, tokens)
        layer = nn.TransformerDecoderLayer(width, heads, 2048, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, DECODER_LAYERS, nn.LayerNorm(width))
        self.decoder_embedding, self.decoder_output = nn.Embedding(tokens, width), nn.Linear(width, tokens)


def cells_of(sizes: SizeTable) -> list[str]:
    """MB, bits per parameter, ratio to bare float32 numbers, and kB by what holds them, which add up to the file."""
    by_encoding = dict.fromkeys(ENCODINGS, 0)
    for row in sizes.rows:
        by_encoding[row.encoding] += row.num_bytes
    rest = sizes.file.total - sum(by_encoding.values())
    parts = [f"{value / 1e3:,.1f}" for value in (*by_encoding.values(), rest)]
    total = f"{sizes.file.total / 1e6:.2f}"
    return [total, f"{sizes.bits_per_weight:.2f}", f"{sizes.ratio_to_numbers(32):.1f}x", *parts]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory(prefix="lowbit_k2-") as folder:
        path = Path(folder) / "packed.safetensors"
        for name in args.models:
            label, sizes = MODELS[name]
            model = Hybrid(*sizes)
            count = sum(p.numel() for p in model.parameters())
            quantize_model(model, QuantConfig.preset("mixed", BITS, alpha_init="one"), strict=True)
            for allocation in progress_bar(ALLOCATIONS, label, leave=False):
                with use_precision(model, allocation):
                    save_packed(model, path)
                rows.append([label, f"{count:,}", allocation.name, *cells_of(size_table(read_packed(path)))])
    head = ["model", "parameters", "allocation", "MB", "bits a parameter", "ratio"]
    print(markdown_table([*head, *(f"kB at {bits}" for bits in ENCODINGS.values()), "kB header"], rows))


if __name__ == "__main__":
    run_main(main)
