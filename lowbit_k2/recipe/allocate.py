"""Measure how sensitive a float model's tensors are, and choose their precisions under a budget of bytes.

  python -m lowbit_k2.recipe.allocate --exp-dir exp/float --avg 5 --use-averaged-model true --measure kl \
    --cuts data/fbank/an4_cuts_train.jsonl.gz --table exp/float/kl.json --ratio 20 --output exp/float/kl-20x.json
  python -m lowbit_k2.recipe.allocate --table exp/float/kl.json --average-bits 2 --output exp/float/kl-2bit.json
  python -m lowbit_k2.recipe.allocate --table exp/float/kl.json --front exp/float/front.json

The table is measured once, on one mini-batch of cuts with transcripts (--num-batches for more), of a language model on
--text in their place, and kept; without --measure it is read. Budgets count the packed tensors, steps included, but no
header and no tokens: --bytes, --ratio (of the float32 tensors), or --average-bits (as many bytes as that many bits
everywhere would take). The output is what `train.py --precisions FILE` and `decode.py --precision FILE` take, with
`--quant-config mixed`:

  ./train.py --quant-config mixed --precisions exp/float/kl-20x.json --init-from exp/float/pretrained.pt

--descend N goes on from there by the loss of the whole model on --cuts at N allocations more (--descend-by kl: by its
divergence from the float one), and needs the checkpoint again. With --held-out CUTS, such as those of dev, what was
found is compared on them with the table's choice and with one precision for all, and the best is taken.
--quantized FILE.pt writes the float model itself at these precisions, without any training: decode.py and export.py
take it by --checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from torch import nn

from lowbit_k2.allocation.choose import Choice, choose, evaluate, front
from lowbit_k2.allocation.descent import descend, divergence_from_float, loss_at, uniform_choices
from lowbit_k2.allocation.learned import LearnedConfig, learned_preference
from lowbit_k2.allocation.sensitivity import (
    GROUPINGS,
    PROBES,
    Sensitivity,
    curvature,
    groups_of,
    layer_divergence,
    model_checksum,
    output_divergence,
    sizes_of,
)
from lowbit_k2.asr.exporting import TRAINING_STATE
from lowbit_k2.asr.model_io import CheckpointChoice, LoadedModel, load_trained
from lowbit_k2.core.grids import FLOAT_BITS, LOW_BITS
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.lm_text import TextBatches, TokenText
from lowbit_k2.data.manifests import read_cuts
from lowbit_k2.data.text_config import TextConfig
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import write_json
from lowbit_k2.losses.objectives import criterion_from, encoder_of
from lowbit_k2.losses.output import Criterion
from lowbit_k2.models import make_model
from lowbit_k2.progress import progress_bar
from lowbit_k2.quant import Allocation, QuantConfig, QuantReport, quantize_model
from lowbit_k2.quant.walker import quant_config_of
from lowbit_k2.recipe.flags import add_flags, errors_name_flags, make_parser, read_flags
from lowbit_k2.tables import text_table
from lowbit_k2.train.checkpoint import Checkpoint, save_checkpoint

MEASURES = ("kl", "sigmoid", "hessian", "nas")


def quantizable(loaded: LoadedModel, config: QuantConfig) -> tuple[nn.Module, QuantReport]:
    """The float model with quantizers, by the rules that it was made with.

    Raises:
      UserError: it is no float model.
    """
    if loaded.quant_config is None or loaded.quant_config.schemes:
        raise UserError("only a float model can be quantized so: give one that was trained with --precisions 32")
    model = make_model(loaded.model_config)
    model.load_state_dict(loaded.model.state_dict())
    own = {name: getattr(loaded.quant_config, name) for name in ("rules", "layer_prefix")}
    return model.eval(), quantize_model(model, replace(config, **own))


def every_matrix(bits: Sequence[int]) -> QuantConfig:
    """What sensitivities are measured with."""
    return QuantConfig.preset("mixed", precisions=tuple(bits))


def labelled_batches(
    loaded: LoadedModel, criterion: Criterion, cuts: Path, max_duration: float, number: int | None = None
) -> list[Batch]:
    """The first batches of cuts, or all, with the criterion's targets.

    Raises:
      UserError: the cuts cannot be read, or give no batch.
    """
    data = AsrDataModule(DataConfig(manifest_dir=cuts.parent, max_duration=max_duration))
    found: list[Batch] = []
    encode = encoder_of(criterion, loaded.tokenizer)
    for batch in data.test_batches(read_cuts(cuts)):
        found.append(replace(batch, targets=[encode(text) for text in batch.texts]))
        if len(found) == number:
            break
    if not found:
        raise UserError(f"{cuts} gives no batch: give cuts with features and transcripts")
    return found


def text_batches(
    loaded: LoadedModel, files: Sequence[Path], config: TextConfig, number: int | None = None
) -> list[Batch]:
    """The first batches of a shuffled text, or all, in the units of a language model.

    Raises:
      UserError: the text cannot be read, is empty, or has a line that is too long.
    """
    text = TokenText.read(files, loaded.tokenizer, config)
    return list(islice(TextBatches(text, config).train_batches(epoch=1), number))


@dataclass(frozen=True)
class Material:
    """What a model is measured on: cuts with transcripts, or text for a language model."""

    cuts: Path | None
    max_duration: float
    text: Sequence[Path]
    text_config: TextConfig

    @classmethod
    def of(cls, args: argparse.Namespace) -> Material:
        return cls(args.cuts, args.max_duration, args.text, read_flags(TextConfig, args))

    def batches(self, loaded: LoadedModel, criterion: Criterion, number: int | None = None) -> list[Batch]:
        """The first batches, or all, of what the model reads.

        Raises:
          UserError: that is not given, cannot be read, or gives no batch.
        """
        if loaded.model_config.num_features:
            if self.cuts is None:
                raise UserError("--cuts is needed: a few batches of training cuts with transcripts")
            return labelled_batches(loaded, criterion, self.cuts, self.max_duration, number)
        if not loaded.model_config.networks:
            raise UserError(f"a {loaded.model_config.kind} puts out no units: give a recogniser or a language model")
        if not self.text:
            raise UserError("--text is needed for a language model: training text, one sentence per line")
        return text_batches(loaded, self.text, self.text_config, number)


def measure(args: argparse.Namespace) -> Sensitivity:
    """The table of a checkpoint."""
    loaded, _ = load_trained(read_flags(CheckpointChoice, args))
    model, report = quantizable(loaded, every_matrix(args.bits))
    criterion = criterion_from(loaded.meta["settings"], loaded.tokenizer, args.lang_dir)
    batches = Material.of(args).batches(loaded, criterion, args.num_batches)
    members = groups_of(model, args.group_by, loaded.quant_config.layer_prefix)
    learning = read_flags(LearnedConfig, args)
    steps = {
        "kl": len(members) * len(args.bits) * len(batches),
        "sigmoid": len(members) * len(batches),
        "hessian": args.probes,
        "nas": learning.updates,
    }[args.measure]
    with progress_bar(total=steps, desc=args.measure) as bar:
        measures: dict[str, Callable] = {
            "kl": partial(output_divergence, model, criterion, batches),
            "sigmoid": partial(layer_divergence, model, batches),
            "hessian": partial(curvature, model, criterion, batches, probes=args.probes),
            "nas": partial(learned_preference, model, criterion, batches, config=learning),
        }
        loss = measures[args.measure](members=members, bits=args.bits, step=bar.update)
    size, fixed = sizes_of(report, members, args.bits)
    rows = {row.name: row.num_weights for row in report.rows}
    weights = {group: sum(rows[name] for name in own) for group, own in members.items()}
    names = ", ".join(path.name for path in args.text or [args.cuts])
    note = f"{sum(len(b.ids) for b in batches)} {'rows' if args.text else 'utterances'} of {names}"
    sizes = (size, fixed, report.bytes_at(FLOAT_BITS), weights)
    return Sensitivity(args.measure, model_checksum(model), members, loss, *sizes, note)


def model_of(args: argparse.Namespace, table: Sensitivity) -> tuple[LoadedModel, nn.Module]:
    """The float model that a table was measured on, and it with quantizers whose scales are nearest to its weights.

    Raises:
      UserError: the table is not that of the checkpoint.
    """
    loaded, _ = load_trained(read_flags(CheckpointChoice, args))
    model, _ = quantizable(loaded, every_matrix(table.bits))
    if table.model != model_checksum(model):
        raise UserError(f"{args.table} was measured on another model: give that one's checkpoint, or measure anew")
    return loaded, model


def search(
    args: argparse.Namespace, table: Sensitivity, budget: int, tied: Sequence[Sequence[str]]
) -> list[tuple[str, Choice]]:
    """The table's choice, what --descend finds from there, the best on --held-out; the last of them is to be used."""
    found = [(f"chosen under {budget:,}", choose(table, budget, tied, args.forbid))]
    if not args.descend and not args.held_out:
        return found
    loaded, model = model_of(args, table)
    criterion, material = criterion_from(loaded.meta["settings"], loaded.tokenizer, args.lang_dir), Material.of(args)
    if args.descend:
        batches = material.batches(loaded, criterion, args.num_batches)
        with progress_bar(total=args.descend, desc="descent") as bar:
            if args.descend_by == "kl":
                loss_of = divergence_from_float(model, criterion, batches)
            else:
                loss_of = partial(loss_at, model, criterion, batches)
            lowest = descend(table, budget, loss_of, args.descend, tied, args.forbid, step=bar.update)
        found.append((f"after {args.descend} trials", lowest))
    if args.held_out:
        batches = replace(material, cuts=args.held_out, text=[args.held_out]).batches(loaded, criterion)
        candidates = [*(choice for _, choice in found), *uniform_choices(table, budget, args.forbid)]
        best = min(candidates, key=lambda choice: loss_at(model, criterion, batches, choice.allocation()))
        found.append((f"best on {args.held_out.name}", best))
    return found


def save_quantized(args: argparse.Namespace, table: Sensitivity, allocation: Allocation) -> None:
    """The float model at one allocation, as a checkpoint."""
    loaded, model = model_of(args, table)
    write_quantized(args.quantized, model, loaded, allocation)
    print(f"{args.quantized}: quantized without training, for --checkpoint")


def write_quantized(path: Path, model: nn.Module, loaded: LoadedModel, allocation: Allocation) -> None:
    """A model that `quantizable` made of `loaded`, as the checkpoint of one that was trained at an allocation."""
    meta = {name: value for name, value in loaded.meta.items() if name not in TRAINING_STATE}
    meta["quant"] = quant_config_of(model).to_dict()
    meta["co_training"] = {**meta["co_training"], "precisions": [f"{allocation.name}.json"]}
    meta["allocations"] = {allocation.name: allocation.to_dict()}
    save_checkpoint(path, Checkpoint(model.state_dict(), meta))


def budget_of(args: argparse.Namespace, table: Sensitivity) -> int | None:
    """Bytes; None where none is asked for."""
    if args.bytes is not None:
        return args.bytes
    if args.ratio is not None:
        return int(table.float_size / args.ratio)
    if args.average_bits is not None:
        return uniform_size(table, args.average_bits)
    return None


def uniform_size(table: Sensitivity, bits: float) -> int:
    """Bytes with every group at `bits`; between two precisions in proportion, so that equal bits are equal bytes.

    Raises:
      UserError: more bits than the most, or fewer than the least.
    """
    known = sorted(table.bits)
    if not known[0] <= bits <= known[-1]:
        raise UserError(f"--average-bits {bits:g}: give a number from {known[0]} to {known[-1]}")
    sizes = [table.fixed_size + sum(own[b] for own in table.size.values()) for b in known]
    return int(np.interp(bits, known, sizes))


def show(table: Sensitivity, choices: Sequence[tuple[str, Choice]]) -> str:
    """A line per choice."""
    total = sum(table.weights.values())
    lines = []
    for name, choice in choices:
        average = sum(table.weights[group] * bits for group, bits in choice.bits.items()) / total
        counts = [sum(b == bits for b in choice.bits.values()) for bits in table.bits]
        size = [f"{choice.size:,}", f"{table.float_size / choice.size:.1f}x", f"{average:.2f}"]
        lines.append([name, *size, f"{choice.loss:.5g}", *map(str, counts)])
    return text_table(["", "bytes", "ratio", "average bits", table.measure, *(f"at {b}" for b in table.bits)], lines)


def bits_list(text: str) -> tuple[int, ...]:
    """`8,4,2,1`, for argparse."""
    bits = tuple(sorted({int(part) for part in text.split(",")}, reverse=True))
    if not bits or any(b not in LOW_BITS for b in bits):
        raise argparse.ArgumentTypeError(f"{text}: give numbers of bits from 8 to 1")
    return bits


def pairs(text: str) -> tuple[str, int]:
    """`PATTERN=BITS`, for argparse."""
    pattern, _, bits = text.rpartition("=")
    return pattern, int(bits)


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--table", type=Path, required=True, help="sensitivities: written with --measure, else read")
    parser.add_argument("--measure", choices=MEASURES, help="measure now, on the checkpoint that the flags below name")
    parser.add_argument("--bits", type=bits_list, default=(8, 4, 2, 1), help="precisions (8,4,2,1)")
    parser.add_argument("--group-by", choices=GROUPINGS, default="tensor", help="what shares a precision")
    parser.add_argument("--cuts", type=Path, help="cuts with features and transcripts, training ones")
    parser.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help="of a language model: text")
    parser.add_argument("--lang-dir", type=Path, help="of a model that was trained by LF-MMI: its n-gram of units")
    parser.add_argument("--max-duration", type=float, default=60.0, help="seconds in a batch")
    parser.add_argument("--num-batches", type=int, default=1)
    parser.add_argument("--probes", type=int, default=PROBES, help="of the Hessian's trace")
    add_flags(parser.add_argument_group("learned precisions, --measure nas"), LearnedConfig)
    add_flags(parser.add_argument_group("checkpoint"), CheckpointChoice)
    add_flags(parser.add_argument_group("text, of a language model"), TextConfig)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--bytes", type=int, help="budget: packed tensors, without header and tokens")
    budget.add_argument("--ratio", type=float, help="budget: the float32 tensors over it")
    budget.add_argument("--average-bits", type=float, help="budget: what that many bits everywhere would take")
    parser.add_argument("--descend", type=int, default=0, metavar="N", help="allocations tried by the model's own loss")
    parser.add_argument("--descend-by", choices=("loss", "kl"), default="loss", help="loss, or divergence from float")
    parser.add_argument(
        "--held-out", type=Path, metavar="FILE", help="cuts (text) on which the final choice is made, of dev"
    )
    parser.add_argument("--tie", action="append", default=[], metavar="PATTERN,PATTERN", help="groups that share bits")
    parser.add_argument("--forbid", action="append", default=[], type=pairs, metavar="PATTERN=BITS")
    parser.add_argument("--output", type=Path, help="the allocation, a .json file")
    parser.add_argument("--quantized", type=Path, metavar="FILE", help="the float model at this choice, a checkpoint")
    parser.add_argument("--front", type=Path, help="write all choices worth having, by bytes")
    return parser


def check(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other."""
    if args.num_batches < 1 or args.probes < 1 or args.descend < 0:
        raise UserError("--num-batches and --probes take numbers from 1 on, --descend from 0")
    for name in ("measure", "descend"):
        if getattr(args, name) and args.cuts is None and not args.text:
            raise UserError(f"--{name} needs --cuts (of a language model --text): one mini-batch is enough")
    if args.cuts is not None and args.text:
        raise UserError("--cuts is for models of speech, --text for language models: leave one of them out")
    for name in ("ratio", "average_bits", "bytes"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1e12:
            raise UserError(f"--{name.replace('_', '-')} must be positive, it is {value}")
    if args.output is not None and args.output.suffix != ".json":
        raise UserError(f"--output {args.output}: give a name that ends in .json")
    wanted = next((name for name in ("output", "quantized", "descend", "held_out") if getattr(args, name)), None)
    if wanted and (args.bytes, args.ratio, args.average_bits) == (None, None, None):
        raise UserError(f"--{wanted.replace('_', '-')} needs a budget: --bytes, --ratio or --average-bits")


def main() -> None:
    args = get_parser().parse_args()
    with errors_name_flags([(cls, "") for cls in (CheckpointChoice, LearnedConfig, TextConfig)]):
        check(args)
        if args.measure:
            table = measure(args)
            table.save(args.table)
            print(f"{args.table}: {len(table.loss)} groups at {', '.join(map(str, table.bits))} bits, {table.note}")
        else:
            table = Sensitivity.load(args.table)
        tied = [text.split(",") for text in args.tie]
        choices = [(f"all at {b}", evaluate(table, dict.fromkeys(table.loss, b))) for b in table.bits]
        budget = budget_of(args, table)
        if budget is not None:
            choices += search(args, table, budget, tied)
            found = choices[-1][1]
            if args.output:
                found.allocation(args.output.stem).save(args.output)
            if args.quantized:
                save_quantized(args, table, found.allocation(args.quantized.stem))
        print(show(table, choices))
        if args.front:
            points = [
                {"bytes": c.size, "loss": c.loss, "bits": dict(c.bits)}
                for c in front(table, tied=tied, forbidden=args.forbid)
            ]
            write_json(args.front, {"measure": table.measure, "float_bits": FLOAT_BITS, "choices": points})


if __name__ == "__main__":
    run_main(main)
