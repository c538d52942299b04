#!/usr/bin/env python3
"""Pack a trained model of read Yoruba into one file of a few hundred kB, and print what takes how many bytes.

./export.py --exp-dir exp/cotrain --avg 5 --precision 1
./export.py --exp-dir exp/cotrain --avg 5 --precision 1.5 --output model.safetensors --float-output float.safetensors
./export.py --exp-dir exp/cotrain --avg 5 --precision 2 --recalibrate-bn 50     # BatchNorm for this precision
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
from lowbit_k2.recipe.flags import make_parser


def main() -> None:
    parser = make_parser(__doc__)
    add_export_flags(parser)
    parser.set_defaults(exp_dir=HERE / "exp/tiny", manifest_dir=HERE / "data/fbank")
    args = parser.parse_args()
    with decoding_errors():
        run_export(read_export_flags(args), lambda: load_cuts(args.manifest_dir, "yoruba", "train"))


if __name__ == "__main__":
    run_main(main)
