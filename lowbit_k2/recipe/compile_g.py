"""Compile the n-gram of lattice rescoring, G_4_gram.pt.

  python -m lowbit_k2.recipe.compile_g --lm data/lm/4gram.arpa --lang-dir data/lang_bpe_500

decode.py finds it by `--lm-dir`. It is made anew where the ARPA file or words.txt has changed.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from lowbit_k2.decode.methods import LATTICE_GRAMMAR
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import sha256
from lowbit_k2.graphs.fsa_io import made_for, read_record, save_fsa
from lowbit_k2.graphs.hlg import read_grammar
from lowbit_k2.graphs.lexicon import read_symbols
from lowbit_k2.k2_compat import require_k2


def compile_g(lm: Path, words: Path, output: Path) -> bool:
    """Write the grammar; False where it is there, made from the same ARPA file and words.

    Raises:
      UserError: an input is missing or damaged, or k2 is not installed.
    """
    require_k2()
    for path in (lm, words):
        if not path.is_file():
            raise UserError(f"{path} does not exist: run prepare_lang and make_lm first")
    record = {**made_for(read_symbols(words)), "lm": sha256(lm)}
    if output.is_file() and read_record(output) == record:
        return False
    save_fsa(output, read_grammar(lm, words, log=partial(print, flush=True)), record)
    return True


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", type=Path, required=True, help="ARPA file, or G in OpenFst's text format")
    parser.add_argument("--lang-dir", type=Path, required=True, help="words.txt")
    parser.add_argument("--output", type=Path, help=f"default: {LATTICE_GRAMMAR} beside the ARPA file")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    output = args.output or args.lm.with_name(LATTICE_GRAMMAR)
    made = compile_g(args.lm, args.lang_dir / "words.txt", output)
    print(f"{output}{'' if made else ' is up to date'}")


if __name__ == "__main__":
    run_main(main)
