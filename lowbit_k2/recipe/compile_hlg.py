"""Compile the decoding graphs of a lang directory: LG.pt, for transducers, and HLG.pt, for CTC.

  python -m lowbit_k2.recipe.compile_hlg --lang-dir data/lang_char --lm data/lm/3gram.arpa

`--lm` takes an ARPA file, or G as OpenFst text. words.txt, the names of the graphs' output labels, stays beside them.
HLG.json records what they were made from; nothing is done where that has not changed.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import read_json, sha256, write_json
from lowbit_k2.graphs.fsa_io import load_fsa, made_for, save_fsa
from lowbit_k2.graphs.hlg import compile_hlg, compile_lg, read_grammar
from lowbit_k2.graphs.lexicon import WORD_DISAMBIG, read_symbols
from lowbit_k2.k2_compat import require_k2


def compile_lang(lang_dir: Path, lm: Path, order: int | None, output_dir: Path | None = None) -> bool:
    """Write LG.pt and HLG.pt, and beside them what they were made from; False where that has not changed.

    Args:
      output_dir: folder of the graphs, the lang directory by default.

    Raises:
      UserError: an input is missing or damaged, or k2 is not installed.
    """
    require_k2()
    say = partial(print, flush=True)
    inputs = {"lm": lm, **{name: lang_dir / name for name in ("L_disambig.pt", "tokens.txt", "words.txt")}}
    for path in inputs.values():
        if not path.is_file():
            raise UserError(f"{path} does not exist: run prepare_lang and make_lm first")
    origin = {"max_order": order, **{name: sha256(path) for name, path in inputs.items()}}
    lg_path, hlg_path, record = ((output_dir or lang_dir) / name for name in ("LG.pt", "HLG.pt", "HLG.json"))
    if lg_path.is_file() and hlg_path.is_file() and record.is_file() and read_json(record) == origin:
        return False
    record.unlink(missing_ok=True)
    tokens, words = read_symbols(lang_dir / "tokens.txt"), read_symbols(lang_dir / "words.txt")
    symbols = made_for(words, sorted(tokens, key=tokens.__getitem__))
    lexicon = load_fsa(lang_dir / "L_disambig.pt", expected=symbols)
    lg = compile_lg(lexicon, read_grammar(lm, lang_dir / "words.txt", order, say), tokens, words, say)
    save_fsa(lg_path, lg, symbols)
    save_fsa(hlg_path, compile_hlg(lg, tokens[WORD_DISAMBIG], say), symbols)
    write_json(record, origin)
    return True


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lang-dir", type=Path, required=True)
    parser.add_argument("--lm", type=Path, required=True, help="ARPA file, or G in OpenFst's text format")
    parser.add_argument("--max-order", type=int, help="take n-grams of the ARPA file up to this order only")
    parser.add_argument("--output-dir", type=Path, help="folder of the graphs; default: --lang-dir")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    made = compile_lang(args.lang_dir, args.lm, args.max_order, args.output_dir)
    print(f"LG.pt and HLG.pt in {args.output_dir or args.lang_dir}{'' if made else ' are up to date'}")


if __name__ == "__main__":
    run_main(main)
