"""Weights that others have trained, as a checkpoint: a teacher, or what hidden states come from (docs/hubert.md).

  python -m lowbit_k2.recipe.import_hubert --weights hubert-base-ls960 --output exp/base/pretrained.pt
  python -m lowbit_k2.recipe.import_hubert --weights hubert_base.pt --model base --output exp/base/pretrained.pt

Reads a folder as Hugging Face has them, or a file of tensors of a named size; nothing is fetched.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lowbit_k2.asr.model_io import describe_tokenizer
from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.data.tokenizer import NoUnits
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.models.hubert_weights import load_hubert
from lowbit_k2.quant import DEFAULT_RULES, QuantConfig
from lowbit_k2.recipe.flags import make_parser
from lowbit_k2.train.checkpoint import Checkpoint, save_checkpoint


def import_hubert(weights: Path, output: Path, size: str | None = None) -> HubertConfig:
    """Write the checkpoint of a float model.

    Raises:
      UserError: weights that are missing, damaged or of another model; `output` is there already.
    """
    if output.exists():
        raise UserError(f"--output {output} exists already: choose another path")
    model = load_hubert(weights, size)
    quant = QuantConfig.preset("float", rules=(*model.config.rules, *DEFAULT_RULES))
    meta = {"model": model.config.to_dict(), "quant": quant.to_dict(), "tokenizer": describe_tokenizer(NoUnits())}
    save_checkpoint(output, Checkpoint(model.state_dict(), {**meta, "features": {}, "settings": {}}))
    return model.config


def get_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="a folder, .safetensors, .bin or .pt")
    parser.add_argument("--model", choices=list(HubertConfig.sizes), help="size, where no config.json lies beside them")
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    config = import_hubert(args.weights, args.output, args.model)
    print(f"{args.output}: {config.num_layers} layers of {config.d_model}")


if __name__ == "__main__":
    run_main(main)
