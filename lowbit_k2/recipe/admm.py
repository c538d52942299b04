"""Bring a trained float model to low bits by ADMM, with a few labelled batches and no training run.

  python -m lowbit_k2.recipe.admm --exp-dir exp/float --avg 5 --use-averaged-model true --precision 2 \
    --granularity channel --cuts data/fbank/an4_cuts_train.jsonl.gz --output exp/float/admm2.pt
  ./decode.py --checkpoint exp/float/admm2.pt --precision 2
  ./export.py --checkpoint exp/float/admm2.pt --precision 2 --output exp/float/admm2.safetensors

--precision takes what decode.py takes: bits, 1.5, one per layer, or the file of an allocation, as
`lowbit_k2.recipe.allocate` makes them. Every matrix follows it (--quant-config mixed), or those that another preset
switches, whose other tensors have the preset's bits.

The residual, printed for each outer iteration, tells whether weights have come to their tables. That takes about
1 / (gamma * eta2) steps, and there are --outer times --num-batches: the paper's rates, the defaults, are those of long
training, and leave the weights nearly where they are. For a few batches, try --gamma 10 --eta2 0.02.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lowbit_k2.allocation.admm import AdmmStepsConfig, OuterIteration, quantize_by_admm
from lowbit_k2.asr.model_io import CheckpointChoice, LoadedModel, load_trained, precision_label
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.grids import LOW_BITS
from lowbit_k2.data.text_config import TextConfig, split_paths
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.losses.objectives import criterion_from
from lowbit_k2.progress import progress_bar
from lowbit_k2.quant import PRESETS, Allocation, QuantConfig
from lowbit_k2.quant.admm import with_fitted_steps
from lowbit_k2.recipe.allocate import Material, quantizable, write_quantized
from lowbit_k2.recipe.flags import add_flags, errors_name_flags, make_parser, read_flags
from lowbit_k2.tables import text_table

GRANULARITIES = ("tensor", "channel")
FAR = 0.1  # a residual that says that weights have not come to their tables


@dataclass(frozen=True)
class TargetConfig(Config):
    """What the model is brought to, by what, and where it goes."""

    precision: str = option("2", "bits, 1.5, one per layer as 1,1,2,2, or the file of an allocation")
    granularity: str = option("tensor", "a table per tensor, or per row", choices=GRANULARITIES)
    preset: str = option(
        "mixed", "which tensors follow --precision", flag="quant-config", choices=[p for p in PRESETS if p != "float"]
    )
    cuts: Path | None = option(None, "cuts with features and transcripts, training ones")
    text: tuple[Path, ...] = option((), "of a language model: text; several files by commas", parse=split_paths)
    text_config: TextConfig = option(TextConfig, flag="")
    lang_dir: Path | None = option(None, "of a model that was trained by LF-MMI: its n-gram of units")
    max_duration: float = option(60.0, "seconds in a batch", above=0)
    num_batches: int = option(4, "batches, each with a step in an outer iteration", low=1)
    output: Path | None = option(None, "the quantized model, a checkpoint (.pt)")

    def check(self) -> None:
        if self.cuts is None and not self.text:
            raise ConfigError("cuts", "is needed, of a language model text: a few batches of what it was trained on")
        if self.output is None or self.output.suffix != ".pt":
            raise ConfigError("output", f"{self.output or 'is needed'}: give a name that ends in .pt")


def check_output(output: Path, choice: CheckpointChoice) -> None:
    """No checkpoint of a training is written over, nor the one that is read.

    Raises:
      ConfigError: one would be.
    """
    trained = [path for name in ("epoch", "checkpoint", "best") for path in choice.exp_dir.glob(f"{name}-*.pt")]
    if output.resolve() in {path.resolve() for path in (*trained, *filter(None, [choice.checkpoint]))}:
        raise ConfigError("output", f"{output} is a checkpoint, which would be lost: choose another path")


def wanted_allocation(text: str, loaded: LoadedModel, layer_prefix: str) -> Allocation:
    """What `--precision TEXT` means for the model, named as decode.py will call it.

    Raises:
      ConfigError: no precision, or none of 1 to 8 bits.
    """
    try:
        allocation = Allocation.parse(text, loaded.model_config.num_layers, layer_prefix)
    except UserError as error:
        raise ConfigError("precision", str(error).removeprefix("precision ")) from None
    if not set(allocation.bits.values()) & set(LOW_BITS):
        raise ConfigError("precision", f"{text}: ADMM has tables of 1 to 8 bits: give one of these")
    return replace(allocation, name=precision_label(text))


def run(target: TargetConfig, choice: CheckpointChoice, config: AdmmStepsConfig) -> list[OuterIteration]:
    """Read, quantize, write."""
    check_output(target.output, choice)
    loaded, _ = load_trained(choice)
    allocation = wanted_allocation(target.precision, loaded, loaded.quant_config.layer_prefix)
    bits = tuple(sorted(set(allocation.bits.values()), reverse=True))
    preset = QuantConfig.preset(target.preset, precisions=bits, granularity=target.granularity)
    model, report = quantizable(loaded, with_fitted_steps(preset))
    criterion = criterion_from(loaded.meta["settings"], loaded.tokenizer, target.lang_dir)
    material = Material(target.cuts, target.max_duration, target.text, target.text_config)
    batches = material.batches(loaded, criterion, target.num_batches)
    print(report)
    with progress_bar(total=config.outer, desc="ADMM") as bar:
        history = quantize_by_admm(model, criterion, batches, allocation, config, bar.update)
    write_quantized(target.output, model, loaded, allocation)
    return history


def show(history: Sequence[OuterIteration]) -> str:
    """A line per outer iteration."""
    rows = [[str(i), f"{each.loss:.4f}", f"{each.residual:.4f}"] for i, each in enumerate(history, start=1)]
    return text_table(["iteration", "loss", "residual"], rows)


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_flags(parser, TargetConfig)
    add_flags(parser.add_argument_group("ADMM"), AdmmStepsConfig)
    add_flags(parser.add_argument_group("checkpoint"), CheckpointChoice)
    add_flags(parser.add_argument_group("text, of a language model"), TextConfig)
    return parser


def main() -> None:
    args = get_parser().parse_args()
    kinds = (CheckpointChoice, AdmmStepsConfig, TextConfig)
    with errors_name_flags([(kind, "") for kind in (TargetConfig, *kinds)]):
        choice, config, text = (read_flags(kind, args) for kind in kinds)
        target = read_flags(TargetConfig, args, text_config=text)
        history = run(target, choice, config)
    print(show(history))
    if history[-1].residual > FAR:
        print("the weights have not come to their tables, and were put on the nearest: raise --gamma and --eta2")
    print(f"{target.output}: at {target.precision} bits, for --checkpoint")


if __name__ == "__main__":
    run_main(main)
