"""What HuBERT of a size takes in each scheme and precision, without weights or data: storage, operations, run time.

python -m lowbit_k2.recipe.hubert_costs --size base-fast --seconds 10
train_hubert.py --model base --dry-run                                      # the same table

MB are those of arXiv 2301.00652: 16 bits for float parameters, as many for the others as they have. Packed MB are the
payload of this project's files, whose ternary weights take 1.6 bits. Run times are estimated by that paper's formula on
this network's operations, its own float model being 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lowbit_k2.core.grids import HALF_BITS
from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.core.operations import SCHEMES, Operations, stored_bits
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.quant import DEFAULT_RULES, QuantConfig, QuantReport
from lowbit_k2.quant.report import ActivationRow, ReportRow
from lowbit_k2.tables import text_table

BITS = (8, 4, 2, 1)
SAMPLE_RATE = 16000
PAPER_SIZES = ("base", "base-fast")  # whose Transformer is the paper's
EXTRACTOR = "extractor."
# MB of the paper's HuBERT-base with FastConv
PAPER_MB = {("", 16): 184.42, ("bit-l", 1): 25.17, ("bit-la", 1): 25.23, ("sqwq", 1): 25.34, ("bit-la", 2): 35.84}


def get_parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--size", choices=tuple(HubertConfig.sizes), default="base-fast", help="of HuBERT (base-fast)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the utterance that is counted (10)")
    return parser


def packed_bytes(config: HubertConfig, scheme: str, bits: int) -> int:
    """Estimated payload of a packed file; `quantize_model` on the real network reports the same."""
    if bits == HALF_BITS:
        return sum(stored_bits(config, "", bits).values()) // 8
    quant = QuantConfig.preset(scheme, precisions=(bits,), rules=(*HubertConfig.rules, *DEFAULT_RULES))
    rows, activations = [], []
    for name, shape in config.shapes():
        role = quant.role_of(name, len(shape))
        how = quant.schemes[role]
        rows.append(ReportRow(name, role, shape, how.bits, role in quant.switched_roles, granularity=how.granularity))
        if how.input_bits == "same":
            activations.append(name)
    if scheme == "bit-la":
        activations += ["operand"] * (4 * config.num_layers)
    grids = tuple(ActivationRow(name, "", (bits,)) for name in activations)
    return QuantReport(scheme, (bits,), tuple(rows), activations=grids).bytes_at(bits)


def paper_extractor() -> float:
    """MB of the paper's convolutional extractor: what its fp16 size leaves for it beside the Transformer."""
    stored = stored_bits(HubertConfig.preset("base"), "", HALF_BITS)
    return PAPER_MB["", HALF_BITS] - sum(n for name, n in stored.items() if not name.startswith(EXTRACTOR)) / 8e6


def beside_extractor(config: HubertConfig, scheme: str, bits: int) -> float:
    """MB by which this model is larger than the paper's, without its extractor: in Transformer and scales."""
    stored = stored_bits(config, scheme, bits)
    rest = sum(n for name, n in stored.items() if not name.startswith(EXTRACTOR)) / 8e6
    return rest - (PAPER_MB[scheme, bits] - paper_extractor())


def describe(size: str, seconds: float = 10.0) -> list[str]:
    """Lines of the table, and which tensors it differs from the paper's by.

    Raises:
      UserError: less audio than one frame needs.
    """
    config = HubertConfig.preset(size)
    samples = round(seconds * SAMPLE_RATE)
    if config.output_lens(samples) < 1:
        raise UserError(f"--seconds {seconds:g} is shorter than the window of one frame: give at least 0.025")
    operations = Operations.of(config, samples)
    lines = []
    for scheme, bits in (("", HALF_BITS), *((s, b) for s in SCHEMES for b in BITS)):
        megabytes = sum(stored_bits(config, scheme, bits).values()) / 8e6
        gflops, quant_gops = operations.counted(scheme, bits)
        paper = PAPER_MB.get((scheme, bits)) if size in PAPER_SIZES else None
        inputs = {"": HALF_BITS, "sqwq": 8}.get(scheme, bits)
        compared = ["", "", ""]
        if paper is not None:
            differs, rest = 100 * (megabytes / paper - 1), beside_extractor(config, scheme, bits)
            compared = [f"{paper:.2f}", f"{differs:+.2f}%", f"{round(rest, 2) + 0.0:+.2f}"]  # never -0.00
        lines.append(
            (
                scheme or "float",
                f"w{bits}a{inputs}",
                f"{megabytes:.2f}",
                *compared,
                f"{packed_bytes(config, scheme, bits) / 1e6:.2f}",
                f"{gflops:.2f}",
                f"{quant_gops:.1f}",
                f"{operations.runtime(scheme, bits):.3f}",
            )
        )
    header = ("scheme", "bits", "MB", "paper's", "differs", "beside the extractor, MB")
    header += ("packed MB", "GFLOPs", "QuantOPs (Gbit)", "run time")
    stored = stored_bits(config, "", HALF_BITS)
    weights, front = (sum(n for name, n in stored.items() if name.startswith(part)) for part in ("", EXTRACTOR))
    found = [
        f"HuBERT {size}: {weights / HALF_BITS / 1e6:.3f} M parameters, {front / HALF_BITS / 1e6:.3f} M of them in the "
        f"extractor; {seconds:g} s of audio",
        text_table(header, lines, left=(0, 1)),
    ]
    if size in PAPER_SIZES:
        own = ", ".join(f"{name} {n / 8e6:.2f}" for name, n in stored.items() if name.startswith(EXTRACTOR))
        found.append(
            f"The extractor takes {front / 8e6:.2f} MB here, {paper_extractor():.2f} in the paper: "
            f"{front / 8e6 - paper_extractor():+.2f} MB of each difference. Its tensors, in MB: {own}"
        )
    return found


def run(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    print("\n".join(describe(args.size, args.seconds)))


if __name__ == "__main__":
    run_main(run)
