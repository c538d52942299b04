"""Compile the decoding graph HLG.pt of a lang directory.

  python -m lowbit_k2.recipe.compile_hlg --lang-dir data/lang_char --lm data/3gram.arpa

`--lm` takes an ARPA file, or G as OpenFst text. words.txt, the names of HLG's output labels, stays beside HLG.pt.
Nothing is done where HLG.pt is newer than its inputs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lowbit_k2.errors import UserError, run_main
from lowbit_k2.graphs.fsa_io import load_fsa, save_fsa
from lowbit_k2.graphs.hlg import compile_hlg, read_grammar
from lowbit_k2.graphs.lexicon import read_symbols
from lowbit_k2.k2_compat import require_k2


def compile_lang(lang_dir: Path, lm: Path, order: int | None, output: Path) -> bool:
    """Write HLG to `output`; False where it is newer than its inputs.

    Raises:
      UserError: an input is missing or damaged, or k2 is not installed.
    """
    require_k2()
    inputs = [lm, *(lang_dir / name for name in ("L_disambig.pt", "tokens.txt", "words.txt"))]
    for path in inputs:
        if not path.is_file():
            raise UserError(f"{path} does not exist: run prepare_lang and make_lm first")
    if output.is_file() and all(path.stat().st_mtime <= output.stat().st_mtime for path in inputs):
        return False
    hlg = compile_hlg(
        load_fsa(lang_dir / "L_disambig.pt"),
        read_grammar(lm, lang_dir / "words.txt", order),
        read_symbols(lang_dir / "tokens.txt"),
        read_symbols(lang_dir / "words.txt"),
        log=lambda line: print(line, flush=True),
    )
    save_fsa(output, hlg)
    return True


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lang-dir", type=Path, required=True)
    parser.add_argument("--lm", type=Path, required=True, help="ARPA file, or G in OpenFst's text format")
    parser.add_argument("--max-order", type=int, help="take n-grams of the ARPA file up to this order only")
    parser.add_argument("--output", type=Path, help="default: HLG.pt in --lang-dir")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    output = args.output or args.lang_dir / "HLG.pt"
    made = compile_lang(args.lang_dir, args.lm, args.max_order, output)
    print(f"{output}{'' if made else ' is newer than its inputs'}")


if __name__ == "__main__":
    run_main(main)
