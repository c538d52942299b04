#!/usr/bin/env python3
"""Pack a model trained on Switchboard, or on the embedded conversations (--mini true).

./export.py --exp-dir exp/paper --avg 10 --use-averaged-model true --precision 1
./export.py --mini true --precision 1.5 --float-output float.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.asr.exporting import run_export
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import run_main
from lowbit_k2.recipe.decoding_flags import add_export_flags, decoding_errors, read_export_flags
from lowbit_k2.recipe.flags import add_mini_argument, make_parser, wants_mini

MINI = {"exp_dir": HERE / "exp-mini/demo", "manifest_dir": HERE / "data-mini/fbank"}
REAL = {"exp_dir": HERE / "exp/paper", "manifest_dir": HERE / "data/fbank"}


def main() -> None:
    parser = make_parser(__doc__)
    add_mini_argument(parser)
    add_export_flags(parser)
    parser.set_defaults(**(MINI if wants_mini() else REAL))
    args = parser.parse_args()
    with decoding_errors():
        run_export(read_export_flags(args), lambda: load_cuts(args.manifest_dir, "swbd", "train"))


if __name__ == "__main__":
    run_main(main)
