#!/usr/bin/env python3
"""Is a searched allocation better than uniform precisions and than chance, at equal bytes?

The float model is quantized as each allocation says, without any training, and its loss per frame measured on dev: the
points of the front that a table of sensitivities gives, every uniform precision, and allocations drawn by chance that
take as many bytes as a chosen one, or up to 2% fewer.

python -m lowbit_k2.recipe.allocate --exp-dir egs/an4/exp/float --measure kl --table kl.json \\
  --cuts egs/an4/data/fbank/an4_cuts_train.jsonl.gz
python benchmarks/allocation.py --exp-dir egs/an4/exp/float --tables kl.json sigmoid.json \\
  --cuts egs/an4/data/fbank/an4_cuts_dev.jsonl.gz --plot front.png

Checkpoint flags as decode.py has them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.allocation.choose import Choice, choose, evaluate, front
from lowbit_k2.allocation.descent import loss_at
from lowbit_k2.allocation.sensitivity import Sensitivity, model_checksum
from lowbit_k2.asr.model_io import CheckpointChoice, load_trained
from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.losses.objectives import criterion_from
from lowbit_k2.progress import progress_bar
from lowbit_k2.quant import Allocation
from lowbit_k2.recipe.allocate import every_matrix, labelled_batches, quantizable, uniform_size
from lowbit_k2.recipe.flags import add_flags, errors_name_flags, make_parser, read_flags
from lowbit_k2.tables import text_table

CLOSE = 0.98  # how near to a chosen one's bytes those of chance must come


def drawn(table: Sensitivity, size: int, number: int, seed: int) -> Iterator[Choice]:
    """Allocations by chance with at most `size` bytes and hardly fewer: precisions are moved until they fit."""
    draw, groups = random.Random(seed), list(table.loss)
    while number:
        bits = {group: draw.choice(table.bits) for group in groups}
        for _ in range(100_000):
            found = evaluate(table, bits)
            if CLOSE * size <= found.size <= size:
                yield found
                number -= 1
                break
            group = draw.choice(groups)
            place = table.bits.index(bits[group]) + (1 if found.size > size else -1)
            if 0 <= place < len(table.bits):
                bits[group] = table.bits[place]


def plot(path: Path, points: dict[str, list[tuple[int, float]]], floor: float) -> None:
    """Loss against bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for name, values in points.items():
        sizes, losses = zip(*sorted(values), strict=True)
        style = {"linestyle": "none", "marker": "x", "alpha": 0.5} if name == "by chance" else {"marker": "o", "ms": 4}
        axes.plot([size / 1000 for size in sizes], losses, label=name, **style)
    axes.axhline(floor, color="grey", linewidth=0.8, label="float")
    axes.set(xscale="log", yscale="log", xlabel="kB of packed tensors", ylabel="loss per frame on dev")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tables", type=Path, nargs="+", required=True, help="of lowbit_k2.recipe.allocate")
    parser.add_argument("--cuts", type=Path, required=True, help="dev cuts with features and transcripts")
    parser.add_argument("--lang-dir", type=Path, help="of a model that was trained by LF-MMI: its n-gram of units")
    parser.add_argument("--max-duration", type=float, default=100.0)
    parser.add_argument("--num-batches", type=int, default=20)
    parser.add_argument("--points", type=int, default=12, help="of each front")
    parser.add_argument("--random", type=int, default=20, help="allocations by chance at each of the sizes")
    parser.add_argument("--ratios", type=float, nargs="*", default=[], help="sizes that are compared")
    parser.add_argument("--average-bits", type=float, nargs="*", default=[4.0, 2.0], help="and those of so many bits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allocations", type=Path, nargs="*", default=[], help="single ones, as --descend finds them")
    parser.add_argument("--plot", type=Path, help="a PNG file")
    add_flags(parser.add_argument_group("checkpoint"), CheckpointChoice)
    args = parser.parse_args()
    with errors_name_flags([(CheckpointChoice, "")]):
        loaded, _ = load_trained(read_flags(CheckpointChoice, args))
        tables = {table.measure: table for table in map(Sensitivity.load, args.tables)}
        first = next(iter(tables.values()))
        model, _ = quantizable(loaded, every_matrix(first.bits))
        foreign = [name for name, table in tables.items() if table.model != model_checksum(model)]
        if foreign:
            raise UserError(f"the table {foreign[0]} is that of another model: measure it on this checkpoint")
        criterion = criterion_from(loaded.meta["settings"], loaded.tokenizer, args.lang_dir)
        batches = labelled_batches(loaded, criterion, args.cuts, args.max_duration, args.num_batches)

    loss_of = partial(loss_at, model, criterion, batches)
    floor = loss_of(Allocation.uniform(FLOAT_BITS))
    points: dict[str, list[tuple[int, float]]] = {}
    for name, table in tables.items():
        chosen = front(table, args.points)
        bar = progress_bar(chosen, name, leave=False)
        points[name] = [(c.size, loss_of(c.allocation())) for c in bar]
    uniform = [evaluate(first, dict.fromkeys(first.loss, bits)) for bits in first.bits]
    points["uniform"] = [(c.size, loss_of(c.allocation())) for c in uniform]
    rows, points["by chance"] = [], []
    budgets = {f"{ratio:g}x": int(first.float_size / ratio) for ratio in args.ratios}
    budgets |= {f"{bits:g} bits": uniform_size(first, bits) for bits in args.average_bits}
    for label, budget in budgets.items():
        found = {name: choose(table, budget) for name, table in tables.items()}
        losses = {name: loss_of(c.allocation()) for name, c in found.items()}
        chance = [(c.size, loss_of(c.allocation())) for c in drawn(first, budget, args.random, args.seed)]
        points["by chance"] += chance
        worse = sorted(loss for _, loss in chance)
        fitting = [
            (loss, bits) for (size, loss), bits in zip(points["uniform"], first.bits, strict=True) if size <= budget
        ]
        best = min(fitting, default=(float("nan"), 0))
        shown = [f"{losses[name]:.4f}" for name in tables]
        rows.append(
            [
                label,
                f"{budget:,}",
                *shown,
                f"{best[0]:.4f} ({best[1]} bits)",
                f"{worse[0]:.4f}",
                f"{worse[len(worse) // 2]:.4f}",
            ]
        )
    singles = {path.stem: Allocation.load(path) for path in args.allocations}
    for name, allocation in singles.items():
        own = allocation.bits_of(name for names in first.members.values() for name in names)
        size = evaluate(first, {group: own[names[0]] for group, names in first.members.items()}).size
        points[name] = [(size, loss_of(allocation))]
    print(f"loss per frame on {args.cuts.name}, float {floor:.4f}")
    print(text_table(["size", "bytes", *tables, "best uniform that fits", "best by chance", "median"], rows))
    if singles:
        print(
            text_table(
                ["allocation", "bytes", "loss"],
                [[n, f"{points[n][0][0]:,}", f"{points[n][0][1]:.4f}"] for n in singles],
            )
        )
    if args.plot:
        plot(args.plot, points, floor)
        print(args.plot)


if __name__ == "__main__":
    run_main(main)
