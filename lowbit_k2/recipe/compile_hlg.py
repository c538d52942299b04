"""Compile the decoding graphs of a lang directory: LG.pt, for transducers, and HLG.pt, for CTC.

  python -m lowbit_k2.recipe.compile_hlg --lang-dir data/lang_char --lm data/lm/3gram.arpa
  python -m lowbit_k2.recipe.compile_hlg --lang-dir data/lang_phone --lm data/lm/3gram.arpa --topology chain

`--lm` takes an ARPA file, or G as OpenFst text. words.txt, the names of the graphs' output labels, stays beside them.
HLG.json records what they were made from; nothing is done where that has not changed. For a model that LF-MMI trained
on the chain topology, HLG_chain.pt is made in their place.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from lowbit_k2.core.topology import CTC, TOPOLOGIES
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import read_json, sha256, write_json
from lowbit_k2.graphs.fsa_io import graph_file, load_fsa, made_for, save_fsa
from lowbit_k2.graphs.hlg import compile_hlg, compile_lg, read_grammar
from lowbit_k2.graphs.lexicon import WORD_DISAMBIG, read_symbols
from lowbit_k2.k2_compat import require_k2


def compile_lang(
    lang_dir: Path, lm: Path, order: int | None, output_dir: Path | None = None, topology: str = CTC
) -> bool:
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
    folder, hlg_name = output_dir or lang_dir, graph_file("HLG", topology)
    lg_path, hlg_path, record = folder / "LG.pt", folder / hlg_name, (folder / hlg_name).with_suffix(".json")
    made = [hlg_path, record, *([lg_path] if topology == CTC else [])]
    if all(path.is_file() for path in made) and read_json(record) == origin:
        return False
    record.unlink(missing_ok=True)
    tokens, words = read_symbols(lang_dir / "tokens.txt"), read_symbols(lang_dir / "words.txt")
    units = sorted(tokens, key=tokens.__getitem__)
    symbols = made_for(words, units)
    lexicon = load_fsa(lang_dir / "L_disambig.pt", expected=symbols)
    grammar = read_grammar(lm, lang_dir / "words.txt", order, say)
    lg = compile_lg(lexicon, grammar, tokens, words, say, topology)
    if topology == CTC:
        save_fsa(lg_path, lg, symbols)
    hlg = compile_hlg(lg, tokens[WORD_DISAMBIG], say, topology)
    save_fsa(hlg_path, hlg, made_for(words, units, topology))
    write_json(record, origin)
    return True


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lang-dir", type=Path, required=True)
    parser.add_argument("--lm", type=Path, required=True, help="ARPA file, or G in OpenFst's text format")
    parser.add_argument("--max-order", type=int, help="take n-grams of the ARPA file up to this order only")
    parser.add_argument("--output-dir", type=Path, help="folder of the graphs; default: --lang-dir")
    parser.add_argument("--topology", choices=TOPOLOGIES, default=CTC, help="of the model: train.py --lfmmi-topology")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    made = compile_lang(args.lang_dir, args.lm, args.max_order, args.output_dir, args.topology)
    names = "LG.pt and HLG.pt" if args.topology == CTC else graph_file("HLG", args.topology)
    print(f"{names} in {args.output_dir or args.lang_dir}{'' if made else ': up to date'}")


if __name__ == "__main__":
    run_main(main)
